#include "training/data/bpe_train.h"

#include <algorithm>
#include <atomic>
#include <queue>

#include "autograd/check.h"
#include "training/data/tokenizer_json.h"
#include "training/data/tokenizer_threads.h"
#include "training/data/tokenizer_utf8.h"

namespace weft {
namespace {

using Pair = std::pair<int32_t, int32_t>;

uint64_t key_of(Pair pair) {
  return static_cast<uint64_t>(pair.first) << 32 | static_cast<uint32_t>(pair.second);
}
Pair pair_of(uint64_t key) { return {static_cast<int32_t>(key >> 32), static_cast<int32_t>(key)}; }

// The words as symbols, with the count of every pair of neighbours and the words it may occur in, kept up to
// date as pairs are merged: a merge touches only the words that hold its pair.
class Trainer {
 public:
  Trainer(const WordCounts& counts, const std::string& bytes) {
    int32_t id_of[256];
    for (int32_t id = 0; id < 256; ++id) {
      id_of[static_cast<unsigned char>(bytes[id])] = id;
      tokens_.emplace_back(1, bytes[id]);
      ids_.emplace(tokens_.back(), id);
    }
    for (const auto& [word, count] : counts.sorted()) {
      words_.push_back({symbols_.size(), static_cast<uint32_t>(word.size()), count});
      for (unsigned char c : word) symbols_.push_back(id_of[c]);
    }
    for (size_t w = 0; w < words_.size(); ++w)
      for (uint32_t i = 0; i + 1 < words_[w].size; ++i) change(at(w, i), at(w, i + 1), words_[w].count, w);
    for (const auto& [key, stats] : pairs_) heap_.push({stats.count, key});
  }

  void run(size_t vocab_size, int64_t min_count) {
    while (tokens_.size() < vocab_size) {
      if (heap_.empty()) return;
      const Candidate best = heap_.top();
      heap_.pop();
      const auto it = pairs_.find(best.key);
      if (it == pairs_.end()) continue;
      if (it->second.count != best.count) {  // changed since it was pushed
        if (it->second.count > 0) heap_.push({it->second.count, best.key});
        continue;
      }
      if (best.count < min_count) return;
      const std::vector<uint32_t> where = std::move(it->second.words);
      pairs_.erase(it);
      merge(pair_of(best.key), where);
    }
  }

  BpeDefinition result() && {
    BpeDefinition d;
    d.tokens = std::move(tokens_);
    d.merges = std::move(merges_);
    return d;
  }

 private:
  struct Word {
    size_t begin;   // in symbols_
    uint32_t size;  // shrinks
    int64_t count;
  };
  struct PairStats {
    int64_t count = 0;
    std::vector<uint32_t> words;  // every word that holds the pair, and perhaps some that no longer do
  };
  struct Candidate {
    int64_t count;
    uint64_t key;
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : key > other.key;
    }
  };

  int32_t& at(size_t word, uint32_t i) { return symbols_[words_[word].begin + i]; }

  void change(int32_t left, int32_t right, int64_t by, size_t word) {
    PairStats& stats = pairs_[key_of({left, right})];
    stats.count += by;
    if (by > 0 && (stats.words.empty() || stats.words.back() != word))
      stats.words.push_back(static_cast<uint32_t>(word));
  }

  void merge(Pair pair, const std::vector<uint32_t>& where) {
    // Two different pairs may spell the same token; it has one id.
    std::string token = tokens_[pair.first] + tokens_[pair.second];
    const auto [it, is_new] = ids_.emplace(token, static_cast<int32_t>(tokens_.size()));
    if (is_new) tokens_.push_back(std::move(token));
    merges_.push_back(pair);
    std::vector<uint64_t> grown;
    for (uint32_t w : where) merge_in_word(w, pair, it->second, grown);
    std::ranges::sort(grown);
    grown.erase(std::unique(grown.begin(), grown.end()), grown.end());
    for (uint64_t key : grown)
      if (const auto stats = pairs_.find(key); stats != pairs_.end() && stats->second.count > 0)
        heap_.push({stats->second.count, key});
  }

  void merge_in_word(uint32_t w, Pair pair, int32_t id, std::vector<uint64_t>& grown) {
    Word& word = words_[w];
    const auto change_pair = [&](int32_t left, int32_t right, int64_t by) {
      if (Pair{left, right} == pair) return;  // it ceases to exist
      change(left, right, by, w);
      if (by > 0) grown.push_back(key_of({left, right}));
    };
    uint32_t out = 0;
    for (uint32_t i = 0; i < word.size; ++i) {
      if (i + 1 < word.size && at(w, i) == pair.first && at(w, i + 1) == pair.second) {
        if (out > 0) {
          change_pair(at(w, out - 1), pair.first, -word.count);
          change_pair(at(w, out - 1), id, word.count);
        }
        if (i + 2 < word.size) {
          change_pair(pair.second, at(w, i + 2), -word.count);
          change_pair(id, at(w, i + 2), word.count);
        }
        at(w, out++) = id;
        ++i;
      } else {
        at(w, out++) = at(w, i);
      }
    }
    word.size = out;
  }

  std::vector<std::string> tokens_;
  std::unordered_map<std::string, int32_t> ids_;
  std::vector<Pair> merges_;
  std::vector<int32_t> symbols_;
  std::vector<Word> words_;
  std::unordered_map<uint64_t, PairStats> pairs_;
  std::priority_queue<Candidate> heap_;
};

}  // namespace

WordCounts::WordCounts(std::string pattern)
    : rule_{.pattern = std::move(pattern)}, splitter_(make_splitter(rule_)) {}

void WordCounts::add(std::string_view text) {
  const auto count = [&](std::string_view word) {
    ++words_;
    if (const auto it = counts_.find(word); it != counts_.end())
      ++it->second;
    else
      counts_.emplace(word, 1);
  };
  split_by_validity(text, [&](std::string_view run, bool is_valid) {
    if (is_valid)
      splitter_->split(run, count);
    else
      count(run);
  });
}

void WordCounts::add(const WordCounts& other) {
  CHECK(pattern() == other.pattern(), "WordCounts: patterns differ: ", pattern(), " and ", other.pattern());
  for (const auto& [word, count] : other.counts_) counts_[word] += count;
  words_ += other.words_;
}

std::vector<std::pair<std::string, int64_t>> WordCounts::sorted() const {
  std::vector<std::pair<std::string, int64_t>> list(counts_.begin(), counts_.end());
  std::ranges::sort(list);
  return list;
}

WordCounts count_words(std::span<const std::string> texts, const std::string& pattern, int threads) {
  std::vector<WordCounts> parts(std::max(1, threads), WordCounts(pattern));
  std::atomic<size_t> next{0};
  run_threads(static_cast<int>(parts.size()), [&](int part) {
    for (size_t i; (i = next++) < texts.size();) parts[part].add(texts[i]);
  });
  for (size_t i = 1; i < parts.size(); ++i) parts[0].add(parts[i]);
  return std::move(parts[0]);
}

BpeDefinition train_bpe(const WordCounts& counts, int32_t vocab_size, int64_t min_count) {
  if (vocab_size < 257)
    throw Error(Exit::recipe, text("a byte-level vocabulary of ", vocab_size, " ids is too small"),
                "vocab_size", "use at least 257: 256 bytes and the document end token");
  Trainer trainer(counts, bytes_in_alphabet_order());
  trainer.run(static_cast<size_t>(vocab_size) - 1, min_count);
  BpeDefinition d = std::move(trainer).result();
  d.splits.push_back({.pattern = counts.pattern()});
  d.eos_id = static_cast<int32_t>(d.tokens.size());
  d.tokens.emplace_back(document_end);
  d.added.push_back({.id = d.eos_id, .content = std::string(document_end)});
  return d;
}

}  // namespace weft
