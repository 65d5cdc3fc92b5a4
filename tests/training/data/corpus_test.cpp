#include "training/data/corpus.h"

#include <cmath>
#include <map>
#include <set>

#include "fixtures.h"
#include "training/data/dataset.h"
#include "training/data/stories.h"

namespace weft {
namespace {

std::vector<std::string> names(const std::vector<std::string>& paths) {
  std::vector<std::string> out;
  for (const std::string& path : paths) out.push_back(std::filesystem::path(path).filename());
  return out;
}

using Names = std::vector<std::string>;

TEST(Paths, FilesFoldersPatternsAndPairs) {
  TempFolder dir;
  std::filesystem::create_directory(dir / "sub");
  for (const char* name :
       {"b.txt", "a.txt", "c.jsonl", "m.bin", "m.idx", "odd[1].txt", "sub/z.txt", "sub/y.txt", "sub/.hidden"})
    write_file(dir / name, "x");
  EXPECT_EQ(names(expand_paths({dir / "b.txt", dir / "a.txt"})), (Names{"b.txt", "a.txt"}));
  EXPECT_EQ(names(expand_paths({dir / "[ab].txt"})), (Names{"a.txt", "b.txt"}));
  EXPECT_EQ(names(expand_paths({dir / "b.txt", dir / "?.txt", dir / "a.txt"})), (Names{"b.txt", "a.txt"}));
  EXPECT_EQ(names(expand_paths({dir / "sub"})), (Names{"y.txt", "z.txt"}));
  EXPECT_EQ(names(expand_paths({dir / "m*"})), (Names{"m.idx"}));
  EXPECT_EQ(names(expand_paths({dir / "m"})), (Names{"m.idx"}));
  EXPECT_EQ(names(expand_paths({dir / "odd[1].txt"})), (Names{"odd[1].txt"}));
}

TEST(Paths, NoMatchIsAnError) {
  TempFolder dir;
  write_file(dir / "a.txt", "x");
  std::filesystem::create_directory(dir / "empty");
  for (const std::string& pattern : {dir / "none*.txt", dir / "missing.txt", dir / "empty", std::string()}) {
    const Error error = error_of([&] { expand_paths({dir / "a.txt", pattern}); });
    EXPECT_EQ(error.code, Exit::data) << pattern;
    EXPECT_EQ(error.where, pattern);
  }
}

// Documents 0, 1, ... of the lengths given; tokens count on through all of them.
std::string counting(const TempFolder& dir, const std::string& name, const std::vector<int32_t>& lengths,
                     uint16_t start = 0) {
  std::vector<uint16_t> tokens;
  for (const int32_t length : lengths)
    for (int32_t i = 0; i < length; ++i) tokens.push_back(start++);
  write_file(dir / (name + ".idx"), megatron_index(lengths));
  write_file(dir / (name + ".bin"), bytes_of(tokens));
  return dir / name;
}

TEST(Dataset, SamplesKeepDocumentsApart) {
  TempFolder dir;
  const Dataset data({{open_corpus({counting(dir, "a", {3, 1, 6})}, token_options(100)), 1}}, 4);
  EXPECT_EQ(data.samples(), 2);
  EXPECT_EQ(data.tokens(), 8);
  const Batch batch = data.batch(std::vector<int64_t>{0, 1});
  EXPECT_EQ(batch.tokens, (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(batch.targets,
            (std::vector<int32_t>{1, 2, -1, -1, 5, 6, 7, 8}));  // 8: the document goes on after the cut
  EXPECT_EQ(batch.offsets, (std::vector<int64_t>{0, 3, 4, 8}));
  EXPECT_EQ(batch.samples, (std::vector<int64_t>{0, 1}));
}

TEST(Dataset, ASampleBorderStartsAPieceAnew) {
  TempFolder dir;
  const Dataset data({{open_corpus({counting(dir, "a", {10, 2})}, token_options(100)), 1}}, 4,
                     Dataset::Tail::keep);
  const Batch batch = data.batch(std::vector<int64_t>{2, 0, 1});
  EXPECT_EQ(batch.tokens, (std::vector<int32_t>{8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(batch.targets, (std::vector<int32_t>{9, -1, 11, -1, 1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(batch.offsets, (std::vector<int64_t>{0, 2, 4, 8, 12}));
}

TEST(Dataset, TheTailIsDroppedOrKept) {
  TempFolder dir;
  const Corpus corpus = open_corpus({counting(dir, "a", {5, 2})}, token_options(100));
  EXPECT_EQ(Dataset({{corpus, 1}}, 3).samples(), 2);
  const Dataset kept({{corpus, 1}}, 3, Dataset::Tail::keep);
  EXPECT_EQ(kept.samples(), 3);
  EXPECT_EQ(kept.tokens(), 7);
  const Batch tail = kept.batch(std::vector<int64_t>{2});
  EXPECT_EQ(tail.tokens, std::vector<int32_t>{6});
  EXPECT_EQ(tail.targets, std::vector<int32_t>{-1});
  EXPECT_EQ(Dataset({{corpus, 1}}, 7).samples(), 1);
  const Error error = error_of([&] { Dataset({{corpus, 1}}, 8); });
  EXPECT_EQ(error.code, Exit::data);
}

TEST(Dataset, DocumentsOfOneTokenHaveNoLabels) {
  TempFolder dir;
  const Dataset data({{open_corpus({counting(dir, "a", {1, 1, 1, 0, 1})}, token_options(100)), 1}}, 2);
  const Batch batch = data.batch(std::vector<int64_t>{0, 1});
  EXPECT_EQ(batch.targets, (std::vector<int32_t>{-1, -1, -1, -1}));
  EXPECT_EQ(batch.offsets, (std::vector<int64_t>{0, 1, 2, 3, 4}));
}

TEST(Dataset, NoSamplesAreAnEmptyLine) {
  TempFolder dir;
  const Dataset data({{open_corpus({counting(dir, "a", {9})}, token_options(100)), 1}}, 2);
  const Batch batch = data.batch({});
  EXPECT_TRUE(batch.tokens.empty());
  EXPECT_EQ(batch.offsets, std::vector<int64_t>{0});
}

// Any context: all samples together are the corpus, and every label but a document's last is there exactly
// once.
TEST(Dataset, NothingIsLostAtAnyContext) {
  TempFolder dir;
  const std::vector<int32_t> lengths = {3, 1, 17, 64, 2, 29};
  const Corpus corpus = open_corpus({counting(dir, "a", lengths)}, token_options(200));
  for (int64_t context = 1; context <= 116; ++context) {
    const Dataset data({{corpus, 1}}, context, Dataset::Tail::keep);
    std::vector<int32_t> tokens, targets;
    for (int64_t s = 0; s < data.samples(); ++s) {
      const Batch batch = data.batch(std::vector<int64_t>{s});
      ASSERT_EQ(batch.offsets.back(), static_cast<int64_t>(batch.tokens.size()));
      for (size_t d = 1; d < batch.offsets.size(); ++d) ASSERT_LT(batch.offsets[d - 1], batch.offsets[d]);
      tokens.insert(tokens.end(), batch.tokens.begin(), batch.tokens.end());
      targets.insert(targets.end(), batch.targets.begin(), batch.targets.end());
    }
    int32_t token = 0;
    for (const int32_t length : lengths)
      for (int32_t i = 0; i < length; ++i, ++token) {
        ASSERT_EQ(tokens[token], token);
        ASSERT_EQ(targets[token], i + 1 < length ? token + 1 : -1);
      }
  }
}

TEST(Dataset, PartsAreNumberedOneAfterAnother) {
  TempFolder dir;
  const Dataset data({{open_corpus({counting(dir, "a", {5})}, token_options(100)), 3},
                      {open_corpus({counting(dir, "b", {7}, 50)}, token_options(100)), 1}},
                     2);
  EXPECT_EQ(data.samples(), 2 + 3);
  EXPECT_EQ(data.batch(std::vector<int64_t>{1, 2}).tokens, (std::vector<int32_t>{2, 3, 50, 51}));
  const SampleOrder order = data.order(1);
  int64_t from_a = 0;
  for (int64_t i = 0; i < 1000; ++i) from_a += order(i) < 2;
  EXPECT_EQ(from_a, 750);
}

TEST(Dataset, KnowsHowDocumentsStart) {
  TempFolder dir;
  std::string many;
  for (int i = 0; i < 200; ++i) many += std::string(1, static_cast<char>('a' + i / 10)) + "zz\n\n\n";
  write_file(dir / "many.txt", many);
  write_file(dir / "two.txt", "Yes.\n\n\nNo.");
  const auto at = [&](const char* name) { return open_corpus({dir / name}, byte_options()); };
  const std::vector<int32_t> tokens = Dataset({{at("many.txt"), 1}, {at("two.txt"), 1}}, 2).first_tokens();
  const std::string starts(tokens.begin(), tokens.end());
  EXPECT_LE(starts.size(), 66u);
  EXPECT_TRUE(starts.ends_with("YN")) << starts;
  for (char letter = 'a'; letter < 'a' + 20; ++letter)
    EXPECT_NE(starts.find(letter), std::string::npos) << letter;
  EXPECT_EQ(starts.find('z'), std::string::npos) << "within a document";
  // What is left of the only one begins within it.
  const std::vector<Span> rest{{at("two.txt").spans()[0].source, 0, 2, 5}};
  EXPECT_EQ(Dataset({{Corpus(rest), 1}}, 2).first_tokens(), (std::vector<int32_t>{'s'}));
}

TEST(Split, HoldsOutAShareByDocument) {
  TempFolder dir;
  const Corpus all = open_corpus({write_file(dir / "a.txt", story_corpus(1, 1'000'000))}, byte_options());
  const CorpusSplit split = split_corpus(all, 0.1);
  EXPECT_EQ(split.train.tokens() + split.held_out.tokens(), all.tokens());
  EXPECT_EQ(split.train.documents() + split.held_out.documents(), all.documents());
  const double share = double(split.held_out.documents()) / all.documents();
  EXPECT_NEAR(share, 0.1, 5 * std::sqrt(0.09 / all.documents()));
  // A larger share holds out all of the smaller one.
  std::set<int64_t> more;
  const CorpusSplit larger = split_corpus(all, 0.2);
  for (const Span& span : larger.held_out.spans()) more.insert(span.document);
  for (const Span& span : split.held_out.spans()) EXPECT_TRUE(more.contains(span.document));
}

std::set<std::string> held_out_texts(const std::vector<std::string>& paths, double share) {
  std::set<std::string> texts;
  const CorpusSplit split = split_corpus(open_corpus(paths, byte_options()), share);
  for (const Span& span : split.held_out.spans()) {
    std::vector<int32_t> tokens(span.end - span.begin);
    span.source->read(span.document, span.begin, span.end, tokens.data());
    texts.emplace(tokens.begin(), tokens.end());
  }
  return texts;
}

TEST(Split, DependsOnTheTextAlone) {
  TempFolder dir;
  std::vector<std::string> stories;
  for (int i = 0; i < 200; ++i) stories.push_back(story(2, i));
  std::string forward, backward, json;
  for (int i = 0; i < 200; ++i) {
    forward += stories[i] + "\n\n\n";
    backward += stories[199 - i] + "\n<|endoftext|>\n";
  }
  const auto a = write_file(dir / "a.txt", forward), b = write_file(dir / "b.txt", backward);
  const auto held = held_out_texts({a}, 0.1);
  EXPECT_GT(held.size(), 5u);
  EXPECT_EQ(held, held_out_texts({b}, 0.1));
  EXPECT_EQ(held, held_out_texts({a, b}, 0.1));  // equal documents fall on the same side
}

TEST(Split, ALongTextIsHeldOutByBlocks) {
  TempFolder dir;
  std::vector<uint32_t> tokens(1'000'000);
  uint64_t x = 1;
  for (auto& token : tokens) token = (x = x * 6364136223846793005u + 1442695040888963407u) >> 50;
  const Corpus all =
      open_corpus({write_file(dir / "a.bin", llmc_file(tokens, false))}, token_options(1 << 14));
  ASSERT_EQ(all.documents(), 1);
  const CorpusSplit split = split_corpus(all, 0.1);
  EXPECT_NEAR(double(split.held_out.tokens()) / all.tokens(), 0.1, 0.1);
  // Both sides together are the text, in order, cut only where the side changes.
  std::map<int64_t, int64_t> pieces;
  for (const Corpus* side : {&split.train, &split.held_out})
    for (const Span& span : side->spans()) pieces[span.begin] = span.end;
  int64_t at = 0;
  for (const auto& [begin, end] : pieces) {
    EXPECT_EQ(begin, at);
    EXPECT_TRUE(end % 8192 == 0 || end == 1'000'000);
    at = end;
  }
  EXPECT_EQ(at, 1'000'000);
  EXPECT_LE(std::abs(split.train.documents() - split.held_out.documents()), 1);
}

TEST(Split, HoldsOutAtLeastOneAndNeverAll) {
  TempFolder dir;
  const auto two = write_file(dir / "a.txt", "first story\n\n\nsecond story");
  const CorpusSplit split = split_corpus(open_corpus({two}, byte_options()), 1e-9);
  EXPECT_EQ(split.train.documents(), 1);
  EXPECT_EQ(split.held_out.documents(), 1);
  const auto one = write_file(dir / "b.txt", "only one");
  EXPECT_EQ(error_of([&] { split_corpus(open_corpus({one}, byte_options()), 0.05); }).code, Exit::data);
  EXPECT_EQ(split_corpus(open_corpus({one}, byte_options()), 0).train.documents(), 1);
}

// Every token counts, however many there are, and those after the last full sample.
TEST(Fingerprint, IsOfEveryToken) {
  TempFolder dir;
  std::vector<uint16_t> tokens(9'000'007);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<uint16_t>(i * 2654435761u >> 13 & 1023);
  const auto fingerprint = [&](int64_t context) {
    const std::string path = write_file(dir / "a.bin", bytes_of(tokens));
    return open_datasets({{{path}}, 0, {}}, context, token_options(1024)).fingerprint();
  };
  const std::string before = fingerprint(64);
  EXPECT_EQ(fingerprint(64), before);
  std::set<std::string> all{before};
  for (const size_t at : {size_t{0}, size_t{64 + 5}, size_t{3 * 64 + 63}, size_t{5'000'000}, size_t{1} << 20,
                          tokens.size() - 8, tokens.size() - 1}) {
    tokens[at] ^= 1;
    EXPECT_TRUE(all.insert(fingerprint(64)).second) << at;
    tokens[at] ^= 1;
  }
  tokens.push_back(7);
  EXPECT_TRUE(all.insert(fingerprint(64)).second) << "one token more, in no sample";
  tokens.pop_back();
  EXPECT_EQ(fingerprint(64), before);
}

// Of a text that is too large to read at every start, some blocks and the last.
TEST(Fingerprint, SpreadsOverWhatIsTooLarge) {
  TempFolder dir;
  std::vector<uint16_t> tokens((5 << 20) + 7);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<uint16_t>(i * 2654435761u >> 13 & 1023);
  const auto hash = [&](size_t blocks) {
    return open_corpus({write_file(dir / "a.bin", bytes_of(tokens))}, token_options(1024)).hash(blocks);
  };
  const std::string whole = hash(6), half = hash(3);
  EXPECT_EQ(hash(4096), whole);
  for (const size_t block : {0, 1, 2, 3, 4, 5}) {
    tokens[block << 20] ^= 1;
    EXPECT_NE(hash(6), whole) << block;
    EXPECT_EQ(hash(3) == half, block == 1 || block == 3) << block;
    tokens[block << 20] ^= 1;
  }
}

// Of what documents and parts hold, not of the files in which they are.
TEST(Fingerprint, IsOfDocumentsAndParts) {
  TempFolder dir;
  counting(dir, "a", {40, 8, 33});
  counting(dir, "b", {80}, 81);
  counting(dir, "one", {40, 8, 33, 80});
  counting(dir, "cut", {40, 8, 33, 50, 30});
  const auto of = [&](const DataConfig& config, int64_t context = 8) {
    return open_datasets(config, context, token_options(1000)).fingerprint();
  };
  const std::string before = of({{{dir / "a"}, {dir / "b"}}, 0, {}});
  EXPECT_EQ(of({{{dir / "one"}}, 0, {}}), before);
  EXPECT_NE(of({{{dir / "cut"}}, 0, {}}), before);
  EXPECT_NE(of({{{dir / "b"}, {dir / "a"}}, 0, {}}), before);
  EXPECT_NE(of({{{dir / "a", 1}, {dir / "b", 1}}, 0, {}}), before);
  EXPECT_NE(of({{{dir / "one"}}, 0, {}}, 16), before);
  const std::string held = of({{{dir / "one"}}, 0, {dir / "a"}});
  EXPECT_TRUE(held.starts_with(before + " and, held out, ")) << held;
  EXPECT_NE(of({{{dir / "one"}}, 0, {dir / "b"}}), held);
}

// Runs of the versions that made such ones still know their text; this one is of the last of them.
TEST(Fingerprint, KnowsThatOfEarlierRuns) {
  TempFolder dir;
  write_file(dir / "a.txt", story_corpus(1, 50'000));
  const Datasets sets = open_datasets({{{dir / "a.txt"}}, 0.05, {}}, 64, byte_options());
  const std::string old = "747 samples (4f725381c896f1f0) and, held out, 36 samples (cee759ea2a3eb6e7)";
  EXPECT_EQ(sets.sampled_fingerprint(), old);
  EXPECT_TRUE(Datasets::is_sampled(old));
  EXPECT_FALSE(Datasets::is_sampled(sets.fingerprint()));
}

TEST(OpenDatasets, PathListAndWeights) {
  TempFolder dir;
  counting(dir, "a", {40});
  counting(dir, "b", {80}, 100);
  counting(dir, "v", {9}, 300);
  const SourceOptions options = token_options(1000);
  const auto one = open_datasets({{{dir / "[ab].idx"}}, 0, {dir / "v"}}, 4, options);
  EXPECT_EQ(one.train.parts().size(), 1u);
  EXPECT_EQ(one.train.samples(), 30);
  EXPECT_EQ(one.val->samples(), 3);  // the last one shorter
  EXPECT_FALSE(open_datasets({{{dir / "a"}}, 0, {}}, 4, options).val);
  EXPECT_EQ(open_datasets({{{dir / "a"}, {dir / "b"}}, 0, {}}, 4, options).train.parts().size(), 1u);
  const auto mixed = open_datasets({{{dir / "a", 2}, {dir / "b", 1}}, 0, {}}, 4, options);
  EXPECT_EQ(mixed.train.parts().size(), 2u);
  int64_t from_a = 0;
  const SampleOrder order = mixed.train.order(7);
  for (int64_t i = 0; i < 3000; ++i) from_a += order(i) < 10;
  EXPECT_EQ(from_a, 2000);
}

TEST(OpenDatasets, AShareIsHeldOutOfEveryPart) {
  TempFolder dir;
  write_file(dir / "a.txt", story_corpus(1, 200'000));
  write_file(dir / "b.txt", story_corpus(2, 200'000));
  const auto sets = open_datasets({{{dir / "a.txt", 1}, {dir / "b.txt", 3}}, 0.05, {}}, 128, byte_options());
  ASSERT_TRUE(sets.val);
  std::set<std::string> sources;
  std::set<uint64_t> held;
  for (const Span& span : sets.val->parts()[0].corpus.spans()) {
    sources.insert(span.source->path());
    held.insert(span.source->hash(span.document, span.begin, span.end));
  }
  EXPECT_EQ(sources.size(), 2u);
  for (const auto& part : sets.train.parts())
    for (const Span& span : part.corpus.spans())
      EXPECT_FALSE(held.contains(span.source->hash(span.document, span.begin, span.end)));
}

// A loss of no labels would be 0, the best there is.
TEST(OpenDatasets, TextWithoutAnyLabelIsAnError) {
  TempFolder dir;
  counting(dir, "a", {40});
  counting(dir, "single", {1, 1, 1, 1, 1, 1});
  const auto refused = [&](const DataConfig& config) {
    const Error error = error_of([&] { open_datasets(config, 4, token_options(1000)); });
    EXPECT_EQ(error.code, Exit::data);
    EXPECT_NE(error.where.find("single"), std::string::npos) << error.where;
  };
  refused({{{dir / "a", 1}}, 0, {dir / "single"}});
  refused({{{dir / "single", 1}}, 0, {}});
  refused({{{dir / "a", 1}, {dir / "single", 1}}, 0, {}});
}

TEST(OpenDatasets, RefusesWhatARecipeGetsWrong) {
  TempFolder dir;
  counting(dir, "a", {40});
  const auto code = [&](const DataConfig& config) {
    return error_of([&] { open_datasets(config, 4, token_options(1000)); }).code;
  };
  EXPECT_EQ(code({{{dir / "a", 1}, {dir / "a"}}, 0, {}}), Exit::recipe);
  EXPECT_EQ(code({{{dir / "a", -1}}, 0, {}}), Exit::recipe);
  EXPECT_EQ(code({{{dir / "a", NAN}}, 0, {}}), Exit::recipe);
  EXPECT_EQ(code({{}, 0, {}}), Exit::recipe);
  EXPECT_EQ(code({{{dir / "none*"}}, 0, {}}), Exit::data);
  EXPECT_EQ(code({{{dir / "a"}}, 0, {dir / "none"}}), Exit::data);
}

}  // namespace
}  // namespace weft
