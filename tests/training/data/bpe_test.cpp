#include "training/data/bpe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "autograd/check.h"
#include "training/data/bpe_merge.h"
#include "training/data/bpe_train.h"
#include "training/data/tokenizer_json.h"

namespace weft {
namespace {

using Ids = std::vector<int32_t>;
using Pair = std::pair<int32_t, int32_t>;

Exit code_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.code;
  }
  return Exit::ok;
}

// The definition: the best pair, the leftmost of equals, one merge at a time.
Ids merged_by_definition(const std::map<Pair, Pair>& merges, Ids ids) {
  for (;;) {
    size_t best = ids.size();
    int32_t best_rank = INT32_MAX;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto it = merges.find({ids[i], ids[i + 1]});
      if (it != merges.end() && it->second.first < best_rank) best = i, best_rank = it->second.first;
    }
    if (best == ids.size()) return ids;
    ids[best] = merges.at({ids[best], ids[best + 1]}).second;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(MergeTable, EqualsTheDefinitionForShortAndLongWords) {
  std::mt19937 rng(4);
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<Pair> pairs;
    Ids results;
    std::map<Pair, Pair> merges;
    int32_t next = 4;
    for (int i = 0; i < 30; ++i) {
      const Pair pair{static_cast<int32_t>(rng() % next), static_cast<int32_t>(rng() % next)};
      if (merges.count(pair)) continue;
      merges[pair] = {static_cast<int32_t>(pairs.size()), next};
      pairs.push_back(pair);
      results.push_back(next++);
    }
    const MergeTable table(pairs, results);
    for (size_t size : {0, 1, 2, 3, 7, 47, 48, 49, 200}) {
      Ids ids(size);
      for (int32_t& id : ids) id = static_cast<int32_t>(rng() % 4);
      const Ids expected = merged_by_definition(merges, ids);
      table.apply(ids);
      ASSERT_EQ(ids, expected) << "size " << size;
    }
  }
}

TEST(MergeTable, TheLaterOfTwoRanksCounts) {
  const std::vector<Pair> pairs{{0, 1}, {1, 2}, {0, 1}};
  const Ids results{3, 4, 3};
  Ids ids{0, 1, 2};
  MergeTable(pairs, results).apply(ids);
  EXPECT_EQ(ids, (Ids{0, 4}));
}

BpeDefinition bytes_only() {
  BpeDefinition d;
  for (int b = 0; b < 256; ++b) d.tokens.emplace_back(1, static_cast<char>(b));
  return d;
}

TEST(Bpe, DefinitionsThatDoNotHoldTogetherAreRefused) {
  const auto refused = [](const std::function<void(BpeDefinition&)>& spoil) {
    BpeDefinition d = bytes_only();
    spoil(d);
    return code_of([&] { (void)make_bpe_tokenizer(d); }) == Exit::data;
  };
  EXPECT_FALSE(refused([](BpeDefinition&) {}));
  EXPECT_TRUE(refused([](BpeDefinition& d) { d.tokens.pop_back(); }));            // a byte is missing
  EXPECT_TRUE(refused([](BpeDefinition& d) { d.tokens.push_back("a"); }));        // twice
  EXPECT_TRUE(refused([](BpeDefinition& d) { d.merges.push_back({97, 98}); }));   // no token "ab"
  EXPECT_TRUE(refused([](BpeDefinition& d) { d.merges.push_back({97, 256}); }));  // no such token
  EXPECT_TRUE(refused([](BpeDefinition& d) { d.merges.push_back({-1, 97}); }));
  EXPECT_TRUE(refused([](BpeDefinition& d) { d.eos_id = 256; }));
  EXPECT_TRUE(refused([](BpeDefinition& d) { d.bos_id = 300; }));
  EXPECT_TRUE(refused([](BpeDefinition& d) { d.added.push_back({.id = 256, .content = "<x>"}); }));
  EXPECT_TRUE(refused([](BpeDefinition& d) { d.added.push_back({.id = 97, .content = "b"}); }));
  EXPECT_TRUE(refused([](BpeDefinition& d) { d.symbols = BpeDefinition::Symbols::characters; }));
}

TEST(Bpe, HashFollowsWhatDecidesTheIds) {
  const std::string hash = definition_hash(bytes_only());
  EXPECT_EQ(hash.size(), 32u);
  const auto changed = [&](const std::function<void(BpeDefinition&)>& change) {
    BpeDefinition d = bytes_only();
    change(d);
    return definition_hash(d) != hash;
  };
  EXPECT_TRUE(changed([](BpeDefinition& d) { std::swap(d.tokens[0], d.tokens[1]); }));
  EXPECT_TRUE(changed([](BpeDefinition& d) { d.merges.push_back({1, 2}); }));
  EXPECT_TRUE(changed([](BpeDefinition& d) { d.splits.push_back({.pattern = gpt2_pattern}); }));
  EXPECT_TRUE(changed([](BpeDefinition& d) { d.ignore_merges = true; }));
  EXPECT_TRUE(changed([](BpeDefinition& d) { d.normalizer.push_back({NormalizerStep::Kind::nfc, {}, {}}); }));
  EXPECT_TRUE(changed([](BpeDefinition& d) { d.added.push_back({.id = 97, .content = "a"}); }));
  EXPECT_FALSE(changed([](BpeDefinition& d) { d.eos_id = 7; }));
  EXPECT_FALSE(changed([](BpeDefinition& d) { d.bos_id = 7; }));
}

TEST(TrainBpe, KnownAnswer) {
  // "aab" 3 times: the pairs aa and ab both occur 3 times, and aa has the smaller ids.
  WordCounts counts("[a-z]+");
  counts.add("aab.aab.aab");
  const BpeDefinition d = train_bpe(counts, 259, 1);
  const auto id = [&](char c) { return static_cast<int32_t>(bytes_in_alphabet_order().find(c)); };
  EXPECT_EQ(d.merges, (std::vector<Pair>{{id('a'), id('a')}, {256, id('b')}}));
  EXPECT_EQ(d.tokens[256], "aa");
  EXPECT_EQ(d.tokens[257], "aab");
  EXPECT_EQ(d.tokens[258], "<|endoftext|>");
  EXPECT_EQ(d.eos_id, 258);
  const auto tokenizer = make_bpe_tokenizer(d);
  EXPECT_EQ(tokenizer->encode("aab<|endoftext|>"), (Ids{257, 258}));
}

TEST(TrainBpe, EndsWhenNoPairIsLeft) {
  WordCounts counts;
  counts.add("ab ab");
  EXPECT_EQ(train_bpe(counts, 1000, 1).tokens.size(), 256u + 2 + 1);  // ab, " ab", the end token
  EXPECT_EQ(train_bpe(counts, 1000, 3).tokens.size(), 257u);
  EXPECT_EQ(train_bpe(WordCounts(), 1000).tokens.size(), 257u);
  EXPECT_EQ(code_of([&] { (void)train_bpe(counts, 256); }), Exit::recipe);
}

// The definition again: count every pair anew before each merge.
std::vector<Pair> trained_by_definition(const WordCounts& counts, size_t merges) {
  std::vector<std::pair<Ids, int64_t>> words;
  const std::string bytes = bytes_in_alphabet_order();
  std::map<std::string, int32_t> ids;
  std::vector<std::string> tokens;
  for (char c : bytes)
    ids[std::string(1, c)] = static_cast<int32_t>(tokens.size()), tokens.emplace_back(1, c);
  for (const auto& [word, count] : counts.sorted()) {
    words.emplace_back(Ids{}, count);
    for (char c : word) words.back().first.push_back(ids[std::string(1, c)]);
  }
  std::vector<Pair> out;
  while (out.size() < merges) {
    std::map<Pair, int64_t> pairs;
    for (const auto& [word, count] : words)
      for (size_t i = 0; i + 1 < word.size(); ++i) pairs[{word[i], word[i + 1]}] += count;
    const auto best = std::max_element(pairs.begin(), pairs.end(), [](const auto& a, const auto& b) {
      return a.second != b.second ? a.second < b.second : a.first > b.first;
    });
    if (best == pairs.end()) return out;
    const Pair pair = best->first;
    const std::string token = tokens[pair.first] + tokens[pair.second];
    if (!ids.count(token)) ids[token] = static_cast<int32_t>(tokens.size()), tokens.push_back(token);
    out.push_back(pair);
    for (auto& [word, count] : words)
      for (size_t i = 0; i + 1 < word.size(); ++i)
        if (word[i] == pair.first && word[i + 1] == pair.second) {
          word[i] = ids[token];
          word.erase(word.begin() + static_cast<std::ptrdiff_t>(i) + 1);
        }
  }
  return out;
}

TEST(TrainBpe, EqualsTheDefinition) {
  std::mt19937 rng(5);
  for (int trial = 0; trial < 20; ++trial) {
    WordCounts counts("[a-z]+");
    for (int i = 0; i < 60; ++i) {
      std::string word(1 + rng() % 9, ' ');
      for (char& c : word) c = static_cast<char>('a' + rng() % 3);
      for (size_t n = 1 + rng() % 4; n > 0; --n) counts.add(word);
    }
    const BpeDefinition d = train_bpe(counts, 257 + 80, 1);
    ASSERT_EQ(d.merges, trained_by_definition(counts, d.merges.size())) << "trial " << trial;
    ASSERT_GE(d.merges.size(), 40u);
  }
}

TEST(TrainBpe, DoesNotDependOnThreadsOrOrder) {
  std::vector<std::string> texts;
  std::mt19937 rng(6);
  for (int i = 0; i < 200; ++i) {
    std::string text;
    for (int j = 0; j < 50; ++j) text += std::string(1 + rng() % 5, static_cast<char>('a' + rng() % 6)) + " ";
    texts.push_back(text);
  }
  const std::string one = definition_hash(train_bpe(count_words(texts, gpt2_pattern, 1), 400));
  std::shuffle(texts.begin(), texts.end(), rng);
  EXPECT_EQ(definition_hash(train_bpe(count_words(texts, gpt2_pattern, 3), 400)), one);
}

TEST(WordCounts, CountsWordsAndKeepsInvalidBytesApart) {
  WordCounts counts;
  counts.add("a b a\xff\xfe b");
  EXPECT_EQ(counts.words(), 5);
  EXPECT_EQ(counts.sorted(),
            (std::vector<std::pair<std::string, int64_t>>{{" a", 1}, {" b", 2}, {"a", 1}, {"\xff\xfe", 1}}));
}

}  // namespace
}  // namespace weft
