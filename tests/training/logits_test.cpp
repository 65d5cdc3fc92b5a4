// `weft logits`: scores of given tokens.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "tests/training/tiny_run.h"
#include "training/checkpoint/safetensors.h"

namespace weft {
namespace {

class Logits : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    tiny_ = new TinyRun;
    ASSERT_EQ(tiny_->train({"model.layers=[delta_rule, softmax, lightning]"}).code, 0);
  }
  static void TearDownTestSuite() { delete tiny_; }

  static std::string path(const std::string& name) { return tiny_->folder() / (name + ".safetensors"); }

  static void write(const std::string& name, int64_t b, int64_t t, const std::vector<int32_t>& ids,
                    const std::vector<int32_t>& doc = {}) {
    std::vector<NamedArray> arrays{{"ids", Dtype::i32, {b, t}, ids.data()}};
    if (!doc.empty()) arrays.push_back({"doc", Dtype::i32, {b, t}, doc.data()});
    write_safetensors(path(name), arrays, {});
  }

  static int run(const std::string& in, const std::string& out, Words flags = {}) {
    flags.insert(flags.begin(),
                 {"logits", "runs/tiny", "--in", in + ".safetensors", "--out", out + ".safetensors"});
    return tiny_->weft(flags).code;
  }

  static std::vector<float> values(const std::string& file, const std::string& name) {
    const OwnedArray array = SafetensorsFile(path(file)).read(name, Dtype::f32);
    return {array.as<float>(), array.as<float>() + count_of(array.shape)};
  }

  static std::vector<int32_t> some_ids(size_t n) {
    std::vector<int32_t> ids(n);
    for (size_t i = 0; i < n; ++i) ids[i] = static_cast<int32_t>((i * 37 + i * i) % 97 + 30);
    return ids;
  }

  static TinyRun* tiny_;
};
TinyRun* Logits::tiny_ = nullptr;

double furthest(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    worst = std::max<double>(worst, std::abs(a[i] - b[i]));
  return worst;
}

TEST_F(Logits, NllIsTheirCrossEntropy) {
  const int64_t b = 3, t = 37;
  const auto ids = some_ids(b * t);
  write("in", b, t, ids);
  ASSERT_EQ(run("in", "out"), 0);
  const SafetensorsFile file(path("out"));
  const int64_t vocab = file.at("logits").shape[2];
  EXPECT_EQ(file.at("logits").shape, (std::vector<int64_t>{b, t, vocab}));
  EXPECT_EQ(file.at("logits").dtype, "F32");
  EXPECT_EQ(file.at("nll").shape, (std::vector<int64_t>{b, t}));
  EXPECT_GE(vocab, 256);
  const auto logits = values("out", "logits"), nll = values("out", "nll");
  for (int64_t i = 0; i < b * t; ++i) {
    double expected = 0;
    if (i % t + 1 < t) {
      double sum = 0;
      for (int64_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(logits[i * vocab + v]));
      expected = std::log(sum) - logits[i * vocab + ids[i + 1]];
    }
    EXPECT_NEAR(nll[i], expected, 1e-4) << i;
  }
}

TEST_F(Logits, DocumentsAndRowsAreApart) {
  const auto ids = some_ids(50);
  std::vector<int32_t> doc(50, 4);
  std::fill(doc.begin() + 19, doc.end(), 9);
  write("whole", 1, 50, ids, doc);
  write("first", 1, 19, {ids.begin(), ids.begin() + 19});
  write("second", 1, 31, {ids.begin() + 19, ids.end()});
  write("without", 1, 50, ids);
  for (const char* name : {"whole", "first", "second", "without"})
    ASSERT_EQ(run(name, std::string(name) + ".out"), 0);
  for (const char* name : {"logits", "nll"}) {
    auto parts = values("first.out", name);
    const auto second = values("second.out", name);
    parts.insert(parts.end(), second.begin(), second.end());
    EXPECT_LT(furthest(values("whole.out", name), parts), 1e-4) << name;
  }
  EXPECT_GT(furthest(values("whole.out", "logits"), values("without.out", "logits")), 1e-2)
      << "what came before matters";

  const auto rows = some_ids(40);
  write("rows", 2, 20, rows);
  write("row", 1, 20, {rows.begin() + 20, rows.end()});
  ASSERT_EQ(run("rows", "rows.out"), 0);
  ASSERT_EQ(run("row", "row.out"), 0);
  const auto both = values("rows.out", "logits");
  EXPECT_LT(furthest({both.begin() + static_cast<int64_t>(both.size() / 2), both.end()},
                     values("row.out", "logits")),
            1e-4);
}

// Document indices are what the text's owner counts by: beyond 32 bits too.
TEST_F(Logits, DocumentsOfAnyNumber) {
  const auto ids = some_ids(6);
  write("small", 1, 6, ids, {0, 0, 1, 1, 1, 2});
  const int64_t first = int64_t{1} << 40;
  const std::vector<int64_t> doc{first, first, first + 1, first + 1, first + 1, first + 2};
  std::string header =
      R"({"ids":{"dtype":"I32","shape":[1,6],"data_offsets":[0,24]},"doc":{"dtype":"I64","shape":[1,6],"data_offsets":[24,72]}})";
  const uint64_t length = header.size();
  std::ofstream file(path("wide"), std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), 8)
      .write(header.data(), static_cast<std::streamsize>(length));
  file.write(reinterpret_cast<const char*>(ids.data()), 24)
      .write(reinterpret_cast<const char*>(doc.data()), 48);
  file.close();
  ASSERT_EQ(run("small", "small.out"), 0);
  ASSERT_EQ(run("wide", "wide.out"), 0);
  for (const char* name : {"logits", "nll"})
    EXPECT_EQ(values("wide.out", name), values("small.out", name)) << name;
}

// A misspelt `doc` would leave one document where several were meant.
TEST_F(Logits, RefusesTensorsThatItDoesNotKnow) {
  const std::vector<int32_t> ids = some_ids(6), doc{0, 0, 1, 1, 1, 2};
  write_safetensors(path("misspelt"),
                    {{"ids", Dtype::i32, {1, 6}, ids.data()}, {"docs", Dtype::i32, {1, 6}, doc.data()}}, {});
  const Ran ran = tiny_->weft(
      {"logits", "runs/tiny", "--in", "misspelt.safetensors", "--out", "misspelt.out.safetensors"});
  EXPECT_EQ(ran.code, 65) << ran.err;
  EXPECT_NE(ran.err.find("did you mean doc?"), std::string::npos) << ran.err;
}

// Over ranks, threads or processes, the scores are those of one.
TEST_F(Logits, SegmentsEqualOneRank) {
  std::vector<int32_t> doc(3 * 200);
  for (size_t i = 0; i < doc.size(); ++i) doc[i] = static_cast<int32_t>(i % 200 < 23 ? 0 : 1);
  write("in", 3, 200, some_ids(3 * 200), doc);
  ASSERT_EQ(run("in", "one", {"--hidden"}), 0);
  const auto expect_as_one = [] {
    for (const char* name : {"logits", "nll", "hidden.0", "hidden.2", "hidden.3"})
      EXPECT_LT(furthest(values("ranks", name), values("one", name)), 1e-4) << name;
    EXPECT_EQ(SafetensorsFile(path("ranks")).at("hidden.1").shape, (std::vector<int64_t>{3, 200, 32}));
  };
  for (const char* segments :
       {"1", "2", "3:zigzag", "2:contiguous:ring", "2:zigzag:heads", "4:zigzag:gather"}) {
    SCOPED_TRACE(segments);
    std::filesystem::remove(path("ranks"));
    ASSERT_EQ(run("in", "ranks", {"--hidden", "--segments", segments}), 0);
    expect_as_one();
  }
#ifdef WEFT_WITH_MPI
  for (const Words& more : {Words{}, Words{"--segments", "2:zigzag:ring"}}) {
    std::filesystem::remove(path("ranks"));
    Words words{
        "launch",           "-n", "2", "logits", "runs/tiny", "--hidden", "--in", "in.safetensors", "--out",
        "ranks.safetensors"};
    words.insert(words.end(), more.begin(), more.end());
    const Ran ran = tiny_->weft(words);
    ASSERT_EQ(ran.code, 0) << ran.err;
    expect_as_one();
  }
#endif
}

#ifdef WEFT_WITH_MPI
// Rank 0 alone writes; what keeps it from that is the one error of the job.
TEST_F(Logits, AFailureOfOneRankIsSaidOnce) {
  write("in", 1, 4, some_ids(4));
  const Ran ran = tiny_->weft({"launch", "-n", "2", "logits", "runs/tiny", "--in", "in.safetensors", "--out",
                               "no/such/folder/x", "--json"});
  EXPECT_EQ(ran.code, 73) << ran.err;
  EXPECT_EQ(ran.json()["error"]["where"].get<std::string>().substr(0, 16), "no/such/folder/x") << ran.out;
  size_t lines = 0;
  for (size_t at = ran.err.find("weft: "); at != std::string::npos; at = ran.err.find("weft: ", at + 1))
    ++lines;
  EXPECT_EQ(lines, 1u) << ran.err;
}

void expect_rank_one_named(const Ran& ran, int code, const std::string& what) {
  EXPECT_EQ(ran.code, code) << ran.err;
  EXPECT_EQ(ran.json()["exit"], code) << ran.out;
  EXPECT_EQ(ran.json()["error"]["rank"], 1) << ran.out;
  EXPECT_NE(ran.out.find(what), std::string::npos) << ran.out;
  EXPECT_NE(ran.err.find("weft: " + what), std::string::npos) << ran.err;
  EXPECT_EQ(ran.err.find("weft: "), ran.err.rfind("weft: ")) << "said once: " << ran.err;
}

TEST_F(Logits, WhatFailsOnRankOneAloneIsSaid) {
  write("in", 1, 40, some_ids(40));
  const TestFolder elsewhere;
  const Words words{"logits", "runs/tiny", "--in", "in.safetensors", "--out", "x.safetensors", "--json"};
  expect_rank_one_named(tiny_->launch_unlike("cd " + elsewhere.path(), words), 66, "on rank 1: not a run");
}

// Scores of other tokens would be wrong, and messages of other lengths do not fit.
TEST_F(Logits, RanksThatReadOtherFilesAreFound) {
  write("in", 1, 40, some_ids(40));
  write("short", 1, 30, some_ids(30));
  auto changed = some_ids(40);
  changed[35] = 66;
  write("changed", 1, 40, changed);
  const auto with = [](const std::string& model, const std::string& in) {
    return Words{"logits", model, "--in", in, "--out", "x.safetensors", "--json"};
  };
  const auto unlike = [&](const Words& second) {
    std::string lines = "set -- \"$1\"";
    for (const std::string& word : second) lines += " " + word;
    return tiny_->launch_unlike(lines, with("runs/tiny", "in.safetensors"));
  };
  for (const char* other : {"short.safetensors", "changed.safetensors"}) {
    SCOPED_TRACE(other);
    expect_rank_one_named(unlike(with("runs/tiny", other)), 65, "ranks do not agree on the tokens");
  }
  expect_rank_one_named(unlike(with("runs/tiny/checkpoints/step-15", "in.safetensors")), 78,
                        "ranks do not agree on the model");
}
#endif

TEST_F(Logits, HiddenStatesOfEveryLayer) {
  write("in", 2, 5, some_ids(10));
  ASSERT_EQ(run("in", "out", {"--hidden"}), 0);
  const SafetensorsFile file(path("out"));
  for (const char* name : {"hidden.0", "hidden.1", "hidden.2", "hidden.3"})
    EXPECT_EQ(file.at(name).shape, (std::vector<int64_t>{2, 5, 32})) << name;
  EXPECT_EQ(file.entries().size(), 6u) << "three layers, four states";
}

TEST_F(Logits, Precisions) {
  write("in", 2, 30, some_ids(60));
  ASSERT_EQ(run("in", "f32"), 0);
  ASSERT_EQ(run("in", "f64", {"--dtype", "f64"}), 0);
  ASSERT_EQ(run("in", "bf16", {"--dtype", "bf16"}), 0);
  const auto exact = values("f64", "logits");
  EXPECT_LT(furthest(values("f32", "logits"), exact), 1e-4);
  EXPECT_LT(furthest(values("bf16", "logits"), exact), 0.2);
  EXPECT_GT(furthest(values("bf16", "logits"), exact), 1e-5);
}

TEST_F(Logits, JsonIsOneLine) {
  write("in", 1, 3, {65, 66, 67});
  const Words words{"logits", "runs/tiny", "--in", "in.safetensors", "--out", "out.safetensors", "--json"};
  const Ran ran = tiny_->weft(words);
  EXPECT_EQ(ran.json()["weft"], "logits/1") << ran.out;
  EXPECT_EQ(ran.json()["exit"], 0);
  Words none = words;
  none[1] = "runs/none";
  EXPECT_EQ(tiny_->weft(none).json()["exit"], 66);
}

TEST_F(Logits, OneToken) {
  write("in", 1, 1, {65});
  ASSERT_EQ(run("in", "out"), 0);
  EXPECT_EQ(values("out", "nll"), (std::vector<float>{0}));
}

TEST_F(Logits, Refuses) {
  const auto leaves_nothing = [](const char* in, Words flags, int code) {
    std::filesystem::remove(path("none"));
    EXPECT_EQ(run(in, "none", std::move(flags)), code) << in;
    EXPECT_FALSE(std::filesystem::exists(path("none")));
  };
  write("in", 1, 4, some_ids(4));
  leaves_nothing("absent", {}, 65);
  leaves_nothing("in", {"--dtype", "f16"}, 64);
  leaves_nothing("in", {"--segments", "2:sideways"}, 64);
  leaves_nothing("in", {"--segments", "4:zigzag:heads"}, 78);  // two heads
  leaves_nothing("in", {"--device", "abacus"}, 64);
  leaves_nothing("in", {"--device", "cuda"}, 78);
  write("large", 1, 3, {1, 100000, 2});
  leaves_nothing("large", {}, 65);
  write("negative", 1, 3, {1, -1, 2});
  leaves_nothing("negative", {}, 65);
  const std::vector<int32_t> flat{1, 2, 3};
  write_safetensors(path("flat"), {{"ids", Dtype::i32, {3}, flat.data()}}, {});
  leaves_nothing("flat", {}, 65);
  write_safetensors(path("other"), {{"x", Dtype::i32, {3}, flat.data()}}, {});
  leaves_nothing("other", {}, 65);
  write("unordered", 1, 3, {1, 2, 3}, {1, 0, 0});
  leaves_nothing("unordered", {}, 65);
  write("empty", 0, 3, {});
  leaves_nothing("empty", {}, 65);
}

}  // namespace
}  // namespace weft
