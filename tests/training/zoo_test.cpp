// `weft eval zoo`: what it has it does not run again.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "tests/tools/program.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;
using Json = nlohmann::json;

class Zoo : public testing::Test {
 protected:
  Zoo() {
    folder_.write(
        "recipes/tasks/copy.yaml",
        "# copy\ndata:\n  task: selective_copy length=8 count=2 symbols=4\nsteps: 6\nbatch_tokens: 128\n"
        "context: 32\nprecision: f32\nmodel:\n  ffn: 32\n  heads: 2\noptim:\n  warmup: 1\ncheckpoint:\n"
        "  every: 2\neval:\n  every: 0\n  batches: 1\n");
    folder_.write("recipes/any.yaml", "# any\n");
  }

  Ran zoo(Words words, RunOptions options = {}) const {
    words.insert(words.begin(),
                 {"eval", "zoo", "--mechanisms", "softmax,linear", "--widths", "16", "--rates", "3e-3"});
    options.folder = folder_.path();
    return run_weft(words, options);
  }
  static std::ptrdiff_t lines(const Ran& ran) { return std::count(ran.err.begin(), ran.err.end(), '\n'); }

  TestFolder folder_;
};

TEST_F(Zoo, SkipsWhatIsThere) {
  const Ran first = zoo({"--seeds", "1..2", "--json"});
  ASSERT_EQ(first.code, 0) << first.err;
  EXPECT_EQ(lines(first), 4) << first.err;
  const Json json = first.json();
  EXPECT_EQ(json["weft"], "eval/1");
  EXPECT_EQ(json["task"], "zoo");
  ASSERT_EQ(json["rows"].size(), 4u);
  for (const Json& row : json["rows"]) {
    for (const char* key :
         {"task", "mechanism", "width", "rate", "seed", "metric", "value", "n", "state_bytes"})
      EXPECT_TRUE(row.contains(key)) << key;
    EXPECT_EQ(row["task"], "copy");
    EXPECT_EQ(row["metric"], "accuracy");
    EXPECT_EQ(row["n"], 500 * 2);
  }
  EXPECT_EQ(json["rows"][0]["state_bytes"], 8 * (16 * 2 * 4 + 8)) << "keys and values of an example, f32";
  EXPECT_TRUE(fs::exists(folder_ / "runs/zoo-cpu/cells/copy-linear-w16-lr0.003-s2.json"));
  EXPECT_FALSE(fs::exists(folder_ / "runs/zoo-cpu/runs/copy-linear-w16-lr0.003-s2/checkpoints"));

  const Ran again = zoo({"--seeds", "1..2"});
  EXPECT_EQ(again.code, 0);
  EXPECT_EQ(again.err, "") << "nothing was left to run";
  EXPECT_EQ(again.out, folder_.read("runs/zoo-cpu/table.md"));
  EXPECT_NE(again.out.find("| softmax |"), std::string::npos) << again.out;
  EXPECT_NE(again.out.find("not decided"), std::string::npos) << "two seeds decide nothing";

  fs::remove(folder_ / "runs/zoo-cpu/cells/copy-linear-w16-lr0.003-s2.json");
  const Ran one = zoo({"--seeds", "1..3", "--json"});
  EXPECT_EQ(lines(one), 3) << "the lost one, and a third seed of both: " << one.err;
  const Json rows = one.json()["rows"];
  for (const Json& row : json["rows"])
    EXPECT_NE(std::find(rows.begin(), rows.end(), row), rows.end()) << "to the last digit";

  const Ran changed = zoo({"--seeds", "1", "steps=7"});
  EXPECT_EQ(lines(changed), 2) << "another recipe, another result: " << changed.err;
  EXPECT_EQ(zoo({"--seeds", "1", "--table", "steps=8"}).err, "") << "runs nothing";
  EXPECT_EQ(zoo({"--table", "--out", "missing"}).code, 66);
  EXPECT_FALSE(fs::exists(folder_ / "missing"));
}

TEST_F(Zoo, GoesOnAfterASignal) {
  const Words words{"--seeds", "1", "--json", "steps=100"};
  const Ran stopped =
      zoo(words, {.stop_at_file = "runs/zoo-cpu/runs/copy-linear-w16-lr0.003-s1/metrics.jsonl"});
  // 0 where the signal came too late.
  EXPECT_TRUE(stopped.code == 75 || stopped.code == 0) << stopped.code << stopped.err;
  const std::string first = folder_.read("runs/zoo-cpu/cells/copy-softmax-w16-lr0.003-s1.json");
  ASSERT_FALSE(first.empty());
  const Ran resumed = zoo(words);
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_EQ(folder_.read("runs/zoo-cpu/cells/copy-softmax-w16-lr0.003-s1.json"), first);
  EXPECT_LE(lines(resumed), 1) << resumed.err;
  Words fresh = words;
  fresh.insert(fresh.end(), {"--out", "runs/fresh"});
  EXPECT_EQ(zoo(fresh).json()["rows"], resumed.json()["rows"]) << "as if it had not been stopped";
}

// Here the signal comes when a result was written and the next run has not begun.
TEST_F(Zoo, ASignalBetweenTwoRuns) {
  const Words words{"--seeds", "1..40", "--json", "steps=20"};
  const Ran stopped = zoo(words, {.stop_at_file = "runs/zoo-cpu/cells/copy-softmax-w16-lr0.003-s1.json"});
  EXPECT_EQ(stopped.code, 75) << stopped.err;
  EXPECT_EQ(stopped.json()["exit"], 75) << stopped.out;
  EXPECT_NE(stopped.err.find("\nweft: stopped by a signal (copy-linear-w16-lr0.003-s1); call it again"),
            std::string::npos)
      << stopped.err;
  EXPECT_FALSE(fs::exists(folder_ / "runs/zoo-cpu/cells/copy-linear-w16-lr0.003-s1.json"));
  EXPECT_EQ(zoo({"--seeds", "1", "--json", "steps=20"}).code, 0);
}

}  // namespace
}  // namespace weft
