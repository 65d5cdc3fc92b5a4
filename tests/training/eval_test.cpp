// Training on a task and `weft eval`, as a person runs them.

#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "tests/training/tiny_run.h"

namespace weft {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

// Of a task instead of stories.
const Words kTask{"data.train=[]", "data.task=selective_copy length=16 count=3 symbols=4"};

Words operator+(Words a, const Words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

class Eval : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    tiny_ = new TinyRun;
    const Ran text = tiny_->train({"eval.batches=1000"});
    ASSERT_EQ(text.code, 0) << text.err;
    *text_bpb_ = text.json()["val_bpb"];
    const Ran ran = tiny_->train(kTask + Words{"run=runs/task"});
    ASSERT_EQ(ran.code, 0) << ran.err;
    *summary_ = ran.json();
  }
  static void TearDownTestSuite() { delete tiny_; }

  static Json eval(const Words& words) {
    const Ran ran = tiny_->weft(Words{"eval"} + words + Words{"--json"});
    EXPECT_EQ(ran.code, 0) << ran.err;
    return ran.json();
  }

  static TinyRun* tiny_;
  static Json *summary_, *text_bpb_;
};
TinyRun* Eval::tiny_ = nullptr;
Json *Eval::summary_ = new Json, *Eval::text_bpb_ = new Json;

TEST_F(Eval, TrainingOnATaskSaysWhatIsRight) {
  const Json& s = *summary_;
  EXPECT_GT(s["val_accuracy"], 0);
  EXPECT_LE(s["val_exact"], s["val_accuracy"]);
  EXPECT_EQ(s["val_bpb"], nullptr);
  EXPECT_EQ(s["baseline_bpb"], nullptr);
  EXPECT_EQ(s["sample"], "") << "no text";
  const auto steps = tiny_->steps("task");
  EXPECT_EQ(steps.back()["val_accuracy"], s["val_accuracy"]);
  EXPECT_EQ(steps.back()["val_exact"], s["val_exact"]);
  EXPECT_FALSE(steps.back().contains("val_bpb"));
  EXPECT_FALSE(steps[0].contains("val_accuracy")) << "where measured";
  EXPECT_NE(tiny_->weft({"generate", "runs/task"}).code, 0);
}

TEST_F(Eval, ResumedOnATaskEndsTheSame) {
  const Ran killed =
      tiny_->train(kTask + Words{"run=runs/cut"}, {.environment = {"WEFT_FAULT=kill@step=13,phase=forward"}});
  ASSERT_NE(killed.code, 0);
  const Ran resumed = tiny_->train(kTask + Words{"run=runs/cut", "--resume", "auto"});
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  for (const char* key : {"weights_hash", "order_hash", "val_accuracy", "val_loss"})
    EXPECT_EQ(resumed.json()[key], (*summary_)[key]) << key;
}

#ifdef WEFT_WITH_MPI
TEST_F(Eval, RanksTrainOnTheSameExamples) {
  for (const char* cp : {"mesh.cp=1", "mesh.cp=2"}) {
    const Ran ran = tiny_->launch(2, kTask + Words{std::string("run=runs/ranks") + cp, cp});
    ASSERT_EQ(ran.code, 0) << ran.err;
    EXPECT_EQ(ran.json()["order_hash"], (*summary_)["order_hash"]);
    EXPECT_NEAR(ran.json()["loss"], (*summary_)["loss"], 1e-3);
    EXPECT_NEAR(ran.json()["val_accuracy"], (*summary_)["val_accuracy"], 0.05);
  }
}
#endif

TEST_F(Eval, ItsLineOfJsonIsThatOfTheContract) {
  const Json json = eval({"runs/task", "--task", "selective_copy length=16,32 count=2,3 symbols=4",
                          "--examples", "40", "--seed", "7"});
  EXPECT_EQ(json["weft"], "eval/1");
  EXPECT_EQ(json["exit"], 0);
  EXPECT_EQ(json["task"], "selective_copy");
  ASSERT_EQ(json["rows"].size(), 8u) << "accuracy and exact of four cells";
  std::set<std::string> cells;
  for (const Json& row : json["rows"]) {
    std::set<std::string> keys;
    for (const auto& [key, value] : row.items()) keys.insert(key);
    EXPECT_EQ(keys, (std::set<std::string>{"task", "length", "count", "symbols", "seed", "metric", "value",
                                           "n", "chance"}));
    EXPECT_EQ(row["seed"], 7);
    EXPECT_TRUE(row["length"].is_number_integer());
    EXPECT_EQ(row["n"], row["metric"] == "exact" ? 40 : 40 * row["count"].get<int>());
    EXPECT_TRUE(row["value"] >= 0 && row["value"] <= 1);
    EXPECT_GT(row["chance"], 0);
    cells.insert(row["metric"].get<std::string>() + row["length"].dump() + row["count"].dump());
  }
  EXPECT_EQ(cells.size(), 8u);
}

TEST_F(Eval, IsAFunctionOfTheSeed) {
  const Json once = eval({"runs/task", "--examples", "30"});
  EXPECT_EQ(once["rows"][0]["task"], "selective_copy") << "what the run was trained on";
  EXPECT_EQ(once, eval({"runs/task", "--examples", "30"}));
  EXPECT_NE(once["rows"], eval({"runs/task", "--examples", "30", "--seed", "2"})["rows"]);
}

TEST_F(Eval, TextByPosition) {
  const Json json = eval({"runs/tiny", "--task", "lm buckets=4"});
  EXPECT_EQ(json["task"], "lm");
  ASSERT_EQ(json["rows"].size(), 5u);
  double nats = 0, tokens = 0;
  for (size_t i = 0; i < 5; ++i) {
    const Json& row = json["rows"][i];
    EXPECT_EQ(row["metric"], "bits_per_byte");
    EXPECT_EQ(row["from"], i == 0 ? 0 : 16 * (i - 1));
    EXPECT_EQ(row["to"], i == 0 ? 64 : 16 * i);
    if (i > 0) nats += row["value"].get<double>() * row["n"].get<double>();
    if (i > 0) tokens += row["n"].get<double>();
  }
  EXPECT_EQ(json["rows"][0]["n"], tokens);
  EXPECT_NEAR(json["rows"][0]["value"], nats / tokens, 0.02) << "end tokens count as labels and not as bytes";
  EXPECT_NEAR(json["rows"][0]["value"].get<double>(), text_bpb_->get<double>(), 1e-6)
      << "as training found it";

  tiny_->folder().write("other.txt", "Qxz wvk, jjq: zzxq!\n");
  const Json other = eval({"runs/tiny", "--task", "lm context=8,16", "--text", "other.txt"});
  ASSERT_EQ(other["rows"].size(), 2u);
  EXPECT_EQ(other["rows"][1]["context"], 16);
  EXPECT_GT(other["rows"][0]["value"], 1.3 * json["rows"][0]["value"].get<double>()) << "not English";
}

// A run that keeps a running mean of its weights validates and samples with it, and so is used by it.
TEST_F(Eval, TheMeanOfTheWeightsWhereTheRunKeepsOne) {
  const Ran ran =
      tiny_->train({"run=runs/mean", "optim.ema=0.9", "eval.batches=100", "sample.temperature=0"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const Json json = ran.json();
  EXPECT_NEAR(eval({"runs/mean"})["rows"][0]["value"].get<double>(), json["val_bpb"].get<double>(), 1e-9);
  const Ran text =
      tiny_->weft({"generate", "runs/mean", "--prompt", "Once ", "--tokens", "16", "--temperature", "0"});
  EXPECT_EQ(text.out, json["sample"].get<std::string>() + "\n");
}

TEST_F(Eval, TextModelsAreAskedForTheNeedle) {
  const Json json =
      eval({"runs/tiny", "--task", "needle length=128,256 digits=2 depth=0,100", "--examples", "10"});
  EXPECT_EQ(json["rows"].size(), 8u);
}

TEST_F(Eval, ASignalEndsIt) {
  for (const Words& words :
       {Words{"runs/task"}, Words{"runs/tiny", "--task", "needle length=128 digits=2 depth=0"}}) {
    const Ran ran =
        tiny_->weft(Words{"eval"} + words + Words{"--examples", "200000", "--json"}, {.stop_after_ms = 2000});
    EXPECT_EQ(ran.code, 75) << ran.err;
    EXPECT_EQ(ran.json()["exit"], 75) << ran.out;
  }
}

TEST_F(Eval, Refuses) {
  struct Case {
    Words words;
    int code;
    const char* says;
  };
  const std::vector<Case> cases{{{"runs/absent"}, 66, "runs/absent"},
                                {{"runs/task", "--task", "mqra"}, 64, "mqar"},
                                {{"runs/task", "--task", "mqar"}, 78, "8192"},
                                {{"runs/task", "--task", "mqar"}, 78, "trained on: selective_copy length=16"},
                                {{"runs/task", "--task", "selective_copy size=3"}, 78, "size"},
                                {{"runs/task", "--task", "lm"}, 64, "--text"},
                                {{"runs/task", "--text", "text.txt"}, 64, "no task here reads text"},
                                {{"runs/task", "--task", ";"}, 64, "--task"},
                                {{"runs/task", "--device", "abacus"}, 64, "--device"},
                                {{"zoo", "--tasks", "mqra"}, 64, "--tasks"},
                                {{"zoo", "--size", "tpu"}, 64, "size"}};
  for (const Case& c : cases) {
    const Ran ran = tiny_->weft(Words{"eval"} + c.words + Words{"--json"});
    EXPECT_EQ(ran.code, c.code) << ran.err;
    EXPECT_EQ(ran.json()["weft"], "eval/1") << ran.out;
    EXPECT_NE(ran.err.find(c.says), std::string::npos) << ran.err;
  }
  for (const Words& words : {Words{"data.task=mqar"},
                             {"data.train=[]", "data.task=mqar length=128"},
                             {"data.train=[]", "data.task=mqar length=64 pairs=99"},
                             {"data.train=[]", "data.task=induction", "model.vocab=3"}}) {
    const Ran ran = tiny_->train(words + Words{"run=runs/refused"});
    EXPECT_EQ(ran.code, 78) << ran.err;
    EXPECT_NE(ran.json()["error"]["where"].get<std::string>().find("override"), std::string::npos) << ran.out;
    EXPECT_FALSE(fs::exists(tiny_->run("refused")));
  }
}

}  // namespace
}  // namespace weft
