// Runs on several ranks, started as a person starts them: the same data, the same losses, one exit code.

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "autograd/check.h"
#include "tests/training/tiny_run.h"
#include "tools/launch.h"
#include "training/data/stories.h"

namespace weft {
namespace {

Words operator+(Words a, const Words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Sequences long enough to be cut between chunks of 64 tokens, over documents longer still.
class LongRun : public TinyRun {
 public:
  LongRun() {
    std::string text = story_corpus(7, 60'000);
    for (size_t at = 0; (at = text.find("\n\n", at)) != std::string::npos;) text.erase(at, 1);
    folder().write("stories.txt", text);
  }
};
const Words kLong{"context=512", "batch_tokens=1024"};

struct Split {
  int ranks, cp;
  const char* strategy = "native";
  const char* layout = "auto";

  std::string name() const {
    return std::to_string(ranks) + "-" + std::to_string(cp) + "-" + strategy + "-" + layout;
  }
  Words words() const {
    return {"mesh.cp=" + std::to_string(cp), std::string("mesh.strategy=") + strategy,
            std::string("mesh.layout=") + layout};
  }
};

void expect_same_losses(const TinyRun& tiny, const std::string& a, const std::string& b) {
  const auto x = tiny.steps(a), y = tiny.steps(b);
  ASSERT_EQ(x.size(), y.size());
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_NEAR(x[i]["loss"], y[i]["loss"], 1e-5 * y[i]["loss"].get<double>()) << "step " << i + 1;
    ASSERT_NEAR(x[i]["grad_norm"], y[i]["grad_norm"], 1e-3 * y[i]["grad_norm"].get<double>())
        << "step " << i + 1;
    if (x[i].contains("val_loss") && y[i].contains("val_loss")) {
      ASSERT_NEAR(x[i]["val_loss"], y[i]["val_loss"], 1e-5 * y[i]["val_loss"].get<double>());
    }
  }
}

int64_t sent(const nlohmann::json& summary) {
  int64_t bytes = 0;
  for (const auto& [kind, n] : summary["wire"].items()) bytes += n.get<int64_t>();
  return bytes;
}

// What crosses inside sequences: bytes well over those of the gradients, or, where a state is small beside
// them, bytes of kinds that gradients never send.
using Kinds = std::vector<const char*>;

void expect_as_one_rank(Words recipe, const std::vector<Split>& splits, const Kinds& kinds = {}) {
  const LongRun tiny;
  recipe = kLong + recipe;
  const Ran one = tiny.train(recipe + Words{"run=runs/one"});
  ASSERT_EQ(one.code, 0) << one.err;
  const int64_t parameters =
      tiny.weft(Words{"validate", "tiny.yaml", "--json"} + recipe).json()["parameters"];
  for (const Split& split : splits) {
    SCOPED_TRACE(split.name());
    const Ran ran = tiny.launch(split.ranks, recipe + split.words() + Words{"run=runs/" + split.name()});
    ASSERT_EQ(ran.code, 0) << ran.err;
    const auto json = ran.json();
    ASSERT_TRUE(json.is_object()) << ran.out;
    EXPECT_EQ(json["world"], split.ranks);
    const auto environment =
        nlohmann::json::parse(tiny.folder().read("runs/" + split.name() + "/environment.json"));
    EXPECT_EQ(environment["versions"].contains("mpi"), split.ranks > 1) << environment;
    EXPECT_EQ(json["mesh"]["cp"], split.cp);
    EXPECT_EQ(json["mesh"]["dp"], split.ranks / split.cp);
    EXPECT_EQ(json["order_hash"], one.json()["order_hash"]);
    EXPECT_EQ(json["tokens"], one.json()["tokens"]);
    // All-reduce of f32 gradients, and over it what crosses inside sequences.
    const int64_t gradients = 20 * 2 * parameters * 4 * (split.ranks - 1) / split.ranks;
    const double ratio = static_cast<double>(sent(json) + 1) / static_cast<double>(gradients + 1);
    EXPECT_GT(ratio, split.cp > 1 && kinds.empty() ? 1.1 : 0.97);
    for (const char* kind : kinds) EXPECT_EQ(json["wire"][kind] > 0, split.cp > 1) << kind;
    EXPECT_LT(ratio, split.cp > 1 || split.ranks == 1 ? INFINITY : 1.03);
    expect_same_losses(tiny, split.name(), "one");
  }
}

TEST(Ranks, SoftmaxAndLightning) {
  std::vector<Split> splits{
      {1, 1}, {2, 1}, {2, 2, "ring", "zigzag"}, {4, 2, "native", "balanced"}, {4, 4, "gather", "contiguous"}};
  if (full_tests()) {
    splits = {{1, 1}, {2, 1}, {2, 2}};
    for (const char* strategy : {"native", "ring", "gather"})
      for (const char* layout : {"zigzag", "contiguous", "balanced"})
        for (const int cp : {2, 4}) splits.push_back({4, cp, strategy, layout});
    splits.push_back({3, 3});
    splits.push_back({4, 1});
    splits.push_back({4, 2, "heads"});
  }
  expect_as_one_rank({}, splits);
}

TEST(Ranks, ACarriedState) {
  std::vector<Split> splits{{2, 2}, {4, 4, "native", "contiguous"}};
  if (full_tests())
    for (const char* layout : {"zigzag", "balanced"}) splits.push_back({4, 2, "native", layout});
  // Three samples, so that no border between ranks is one between samples.
  expect_as_one_rank({"batch_tokens=1536", "model.layers=[titans, sliding_window]",
                      "model.mechanisms.sliding_window.window=24", "model.short_conv=4"},
                     splits, {"send_recv", "all_to_all"});
}

// What `weft validate` says of a step is what the step sends. Documents of many lengths: some cut, some not.
TEST(Ranks, SendWhatThePlanSays) {
  const TinyRun tiny;
  const Words quiet{"context=512", "batch_tokens=1536", "data.val=0", "sample.tokens=0",
                    "checkpoint.every=0"};
  struct Case {
    Split split;
    Words model;
  };
  const std::vector<Case> cases{
      {{2, 2}, {"model.layers=[softmax, lightning]"}},
      {{4, 4}, {"model.layers=[based, sliding_window]", "model.checkpointing=block"}},
      {{4, 2, "ring", "balanced"}, {"model.layers=[softmax]", "model.checkpointing=attention"}},
      {{2, 2, "heads", "contiguous"}, {"model.layers=[softmax]", "precision=bf16"}},
      {{4, 2, "gather"}, {"model.layers=[delta_rule, simple_gla]", "model.short_conv=4"}},
      {{4, 4, "native", "contiguous"}, {"model.layers=[delta_rule]"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.split.name());
    const Words words = quiet + c.split.words() + c.model;
    const auto plan =
        tiny.weft(Words{"validate", "tiny.yaml", "--json", "--ranks", std::to_string(c.split.ranks)} + words)
            .json();
    nlohmann::json wire[2];
    for (const int steps : {0, 1}) {
      const std::string count = std::to_string(steps);
      const Ran ran = tiny.launch(
          c.split.ranks, words + Words{"steps=" + count, "run=runs/" + c.split.name() + "-" + count});
      ASSERT_EQ(ran.code, 0) << ran.err;
      wire[steps] = ran.json()["wire"];
    }
    // After a step the ranks agree on the peak of memory and on whether to stop, and before a checkpoint on
    // whether the weights are finite: eight bytes each.
    wire[0]["all_gather"] = wire[0]["all_gather"].get<int64_t>() + 3 * 8 * (c.split.ranks - 1);
    for (const auto& [kind, bytes] : plan["wire"].items())
      EXPECT_EQ(bytes, wire[1][kind].get<int64_t>() - wire[0][kind].get<int64_t>()) << kind;
  }
}

TEST(Ranks, CutsBetweenSamplesAreSaid) {
  const LongRun tiny;
  const std::string said = "cuts between samples only";
  const Words idle{"mesh.cp=2", "mesh.layout=contiguous", "steps=1", "context=512", "batch_tokens=1024"};
  for (const Words& more : {Words{}, Words{"micro_tokens=512"}}) {
    const bool expected = more.empty();
    const auto plan = tiny.weft(Words{"validate", "tiny.yaml", "--ranks=2", "--json"} + idle + more).json();
    EXPECT_EQ(plan["warnings"].dump().find(said) != std::string::npos, expected) << plan["warnings"];
    const Ran ran = tiny.launch(2, idle + more + Words{expected ? "run=runs/idle" : "run=runs/cut"});
    ASSERT_EQ(ran.code, 0) << ran.err;
    const size_t first = ran.err.find(said);
    EXPECT_EQ(first != std::string::npos, expected) << ran.err;
    EXPECT_EQ(ran.err.find(said, std::min(first, ran.err.size()) + 1), std::string::npos) << "said twice";
  }
}

TEST(Ranks, ThoseWithoutASampleAreSaid) {
  const TinyRun tiny;
  const Words words{"steps=1", "batch_tokens=128"};
  for (const int ranks : {2, 3}) {
    const Ran ran = tiny.launch(ranks, words + Words{"run=runs/" + std::to_string(ranks)});
    ASSERT_EQ(ran.code, 0) << ran.err;
    EXPECT_EQ(ran.err.find("a step has 2 samples for 3 groups of ranks") != std::string::npos, ranks == 3)
        << ran.err;
  }
}

TEST(Ranks, ResumeOnAnotherNumberOfThem) {
  const LongRun tiny;
  const Ran one = tiny.train(kLong + Words{"run=runs/one"});
  ASSERT_EQ(tiny.launch(2, kLong + Words{"steps=10", "mesh.cp=2"}).code, 0);
  ASSERT_EQ(tiny.launch(4, kLong + Words{"steps=15", "mesh.cp=2", "--resume", "auto"}).code, 0);
  const Ran last = tiny.train(kLong + Words{"--resume", "auto"});
  ASSERT_EQ(last.code, 0) << last.err;
  EXPECT_EQ(last.json()["order_hash"], one.json()["order_hash"]);
  expect_same_losses(tiny, "tiny", "one");
}

TEST(Ranks, ALostOneEndsTheJobAndLosesNothing) {
  const LongRun tiny;
  const Words words = kLong + Words{"steps=8", "checkpoint.every=2", "mesh.cp=2", "--resume", "auto"};
  const Ran whole = tiny.launch(2, words + Words{"run=runs/whole"});
  ASSERT_EQ(whole.code, 0) << whole.err;
  for (const char* phase : {"backward", "save.manifest"}) {
    SCOPED_TRACE(phase);
    const Words own = words + Words{std::string("run=runs/") + phase};
    const Ran killed =
        tiny.launch(2, own, {.environment = {std::string("WEFT_FAULT=kill@rank=1,step=6,phase=") + phase}});
    EXPECT_EQ(killed.code, 69) << killed.err;
    EXPECT_EQ(killed.json()["exit"], 69) << killed.out;
    const Ran resumed = tiny.launch(2, own);
    ASSERT_EQ(resumed.code, 0) << resumed.err;
    EXPECT_EQ(resumed.json()["weights_hash"], whole.json()["weights_hash"])
        << "the same world, the same bits";
    EXPECT_EQ(resumed.json()["order_hash"], whole.json()["order_hash"]);
  }
}

TEST(Ranks, AnotherProgramIsFound) {
  const TinyRun tiny;
  const std::string other = tiny.folder() / "weft";
  std::filesystem::copy_file(WEFT_PROGRAM, other);
  std::ofstream(other, std::ios::app) << "x";  // it runs as before
  const Ran ran =
      tiny.launch_unlike("shift; set -- " + other + " \"$@\"", {"train", "tiny.yaml", "--json-summary"});
  EXPECT_EQ(ran.code, 78) << ran.err;
  EXPECT_EQ(ran.json()["error"]["rank"], 1) << "not as rank 0: " << ran.out;
  EXPECT_NE(ran.err.find("ranks do not agree on the program"), std::string::npos) << ran.err;
}

TEST(Ranks, AStoppedOneEndsTheJobAndLosesNothing) {
  const TinyRun tiny;
  // Of the two limits 0 is for ever, so the other ends it.
  const Ran stopped = tiny.launch(2, {},
                                  {.environment = {"WEFT_FAULT=stop@rank=1,step=7,phase=backward",
                                                   "WEFT_HANG_LIMIT=3", "WEFT_STOP_LIMIT=0"}});
  EXPECT_EQ(stopped.code, 81) << stopped.err;
  EXPECT_NE(stopped.err.find("no progress for 3 s: rank 1 is stopped (rank 0 at step 7 in"),
            std::string::npos)
      << stopped.err;
  const Ran resumed = tiny.launch(2, {"--resume", "auto"});
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  for (const char* wrong : {"WEFT_HANG_LIMIT=soon", "WEFT_HANG_LIMIT=-1", "WEFT_STOP_LIMIT=3s"}) {
    const Ran ran = tiny.launch(2, {"run=runs/x"}, {.environment = {wrong}});
    EXPECT_EQ(ran.code, 64) << wrong << ran.err;
  }
}

TEST(Ranks, ASkippedExchangeIsFound) {
  const LongRun tiny;
  const Ran ran = tiny.launch(2, kLong + Words{"mesh.cp=2"},
                              {.environment = {"WEFT_FAULT=skip_exchange@phase=collective"}});
  EXPECT_EQ(ran.code, 70) << ran.err;
  EXPECT_NE(ran.err.find("accounting mismatch"), std::string::npos) << ran.err;
  EXPECT_EQ(ran.json()["exit"], 70) << ran.out;
  EXPECT_EQ(tiny.steps().size(), 0u) << "at the first step";
}

TEST(Ranks, NanOnOneIsSkippedByAll) {
  const LongRun tiny;
  const Ran ran =
      tiny.launch(2, {"steps=4", "checkpoint.every=1"}, {.environment = {"WEFT_FAULT=nan@rank=1,step=4"}});
  ASSERT_EQ(ran.code, 0) << ran.err;
  ASSERT_EQ(tiny.launch(2, {"steps=6", "checkpoint.every=1", "--resume", "auto"}).code, 0);
  ASSERT_EQ(tiny.events("skip").size(), 1u);
  EXPECT_EQ(tiny.events("skip")[0]["step"], 4);
  EXPECT_EQ(tiny.weights_hash_at(3), tiny.weights_hash_at(4));
  EXPECT_NE(tiny.weights_hash_at(4), tiny.weights_hash_at(5));
}

// The sum over ranks is not finite on any of them; the message names where it came from.
TEST(Ranks, NanNamesTheRankThatMadeIt) {
  const TinyRun tiny;
  const Ran ran = tiny.launch(3, {"steps=6"},
                              {.environment = {"WEFT_FAULT=nan@rank=1,step=3,phase=forward;"
                                               "nan@rank=2,step=4,phase=collective;"
                                               "nan@rank=1,step=5;nan@rank=2,step=5"}});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const auto skips = tiny.events("skip");
  ASSERT_EQ(skips.size(), 3u);
  const auto reason = [&](size_t i) { return skips[i]["reason"].get<std::string>(); };
  EXPECT_TRUE(reason(0).starts_with("the loss is nan (first in the gradient of ")) << reason(0);
  EXPECT_TRUE(reason(0).ends_with(", on rank 1)")) << reason(0);
  EXPECT_TRUE(reason(1).starts_with("the gradient norm is nan (first in the gradient of ")) << reason(1);
  EXPECT_TRUE(reason(1).ends_with(", on rank 2)")) << reason(1);
  EXPECT_TRUE(reason(2).ends_with(", on 2 of 3 ranks, first on rank 1)")) << reason(2);
}

TEST(Ranks, NanThatEndsARunNamesTheRankThatMadeIt) {
  const TinyRun tiny;
  const RunOptions fault{.environment = {"WEFT_FAULT=nan@rank=2,step=4"}};
  const auto expect = [&](const Ran& ran, const char* what) {
    EXPECT_EQ(ran.json()["exit"], 80) << ran.out;
    EXPECT_EQ(ran.json()["error"]["rank"], 2) << ran.out;
    EXPECT_NE(ran.err.find(what), std::string::npos) << ran.err;
    EXPECT_NE(ran.err.find("on rank 2"), std::string::npos) << ran.err;
  };
  const Words words{"numerics.max_skips=0"};
  expect(tiny.launch(3, words, fault), "no checkpoint to go back to");
  expect(tiny.mpirun(3, words + Words{"run=runs/mpirun"}, fault), "no checkpoint to go back to");
  expect(tiny.launch(3, words + Words{"numerics.rewind=0", "run=runs/stop"}, fault),
         "step 4: the loss is nan");
  expect(tiny.launch(3, {"steps=4", "run=runs/end"},
                     {.environment = {"WEFT_FAULT=nan@rank=2,step=2;nan@rank=2,step=3;nan@rank=2,step=4"}}),
         "the last 3 steps were not applied");
}

// A bit that flips behind the sum of the gradients changes one rank's weights alone: the losses hardly tell,
// and a checkpoint would be made of shares of different models.
TEST(Ranks, WeightsThatDriftApartAreFound) {
  const TinyRun tiny;
  const Words words{"steps=10", "--resume", "auto"};
  const Ran whole = tiny.launch(3, words + Words{"run=runs/whole"});
  ASSERT_EQ(whole.code, 0) << whole.err;
  const Ran ran = tiny.launch(3, words, {.environment = {"WEFT_FAULT=flip@rank=1,step=7,phase=optimizer"}});
  EXPECT_EQ(ran.code, 70) << ran.err;
  EXPECT_NE(ran.err.find("rank 1 holds other weights than rank 0"), std::string::npos) << ran.err;
  EXPECT_EQ(ran.json()["error"]["rank"], 1) << ran.out;
  EXPECT_EQ(tiny.checkpoints(), Words{"step-5"});
  const Ran resumed = tiny.launch(3, words);
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_EQ(resumed.json()["weights_hash"], whole.json()["weights_hash"]);
}

TEST(Ranks, WeightsThatOneHasLostAreFound) {
  const TinyRun tiny;
  const Ran ran = tiny.launch(3, {"numerics.rewind=0"},
                              {.environment = {"WEFT_FAULT=nan@rank=1,step=10,phase=optimizer"}});
  EXPECT_EQ(ran.code, 80) << ran.err;
  EXPECT_NE(ran.err.find("the weights after step 10 "), std::string::npos) << ran.err;
  EXPECT_NE(ran.err.find("are not finite on rank 1, and numerics.rewind is used up"), std::string::npos)
      << ran.err;
  EXPECT_EQ(ran.json()["error"]["rank"], 1) << ran.out;
  EXPECT_EQ(tiny.checkpoints(), Words{"step-5"});
}

TEST(Ranks, ASaveThatFailsOnOneFailsOnAll) {
  const LongRun tiny;
  const Ran ran = tiny.launch(2, {"steps=6", "checkpoint.every=2"},
                              {.environment = {"WEFT_FAULT=enospc@rank=1,step=4,phase=save.mid"}});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(tiny.checkpoints(), (Words{"step-2", "step-6"}));
  EXPECT_NE(ran.err.find("step 4 was not saved: on rank 1: no space left"), std::string::npos) << ran.err;
}

TEST(Ranks, StoppedBySignal) {
  const LongRun tiny;
  RunOptions options{.environment = {"WEFT_FAULT=slow:100@phase=load"}};
  options.stop_at_file = "runs/tiny/metrics.jsonl";
  const Words words{"steps=60", "checkpoint.every=0", "--resume", "auto"};
  const Ran stopped = tiny.launch(2, words, options);
  EXPECT_EQ(stopped.code, 75) << stopped.err;
  const Ran resumed = tiny.launch(2, words);
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  const Ran whole = tiny.launch(2, words + Words{"run=runs/whole"});
  EXPECT_EQ(resumed.json()["weights_hash"], whole.json()["weights_hash"]);
}

TEST(Ranks, AStopEndsAnEvaluation) {
  const TinyRun tiny;
  // Three ranks of unequal shares: all of them leave it at the same batch.
  const Words words{"steps=2", "eval.every=1", "eval.batches=100", "--resume", "auto"};
  const Ran whole = tiny.launch(3, words + Words{"run=runs/whole"});
  ASSERT_EQ(whole.code, 0) << whole.err;
  RunOptions options{.environment = {"WEFT_FAULT=slow:400@phase=evaluate"}};
  options.stop_at_file = "runs/tiny/recipe.yaml";
  const Ran stopped = tiny.launch(3, words, options);
  EXPECT_EQ(stopped.code, 75) << stopped.err;
  EXPECT_EQ(tiny.steps().size(), 1u);
  EXPECT_FALSE(tiny.steps()[0].contains("val_loss"));
  const Ran resumed = tiny.launch(3, words);
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_EQ(resumed.json()["weights_hash"], whole.json()["weights_hash"]);
  for (size_t i : {0, 1}) EXPECT_EQ(tiny.steps()[i]["val_loss"], tiny.steps("whole")[i]["val_loss"]);
}

TEST(Ranks, ErrorsAreSaidOnce) {
  const LongRun tiny;
  const Ran recipe = tiny.launch(2, {"mesh.dp=3"});
  EXPECT_EQ(recipe.code, 78) << recipe.err;
  EXPECT_EQ(recipe.json()["exit"], 78) << recipe.out;
  const std::string line = "weft: ";
  int said = 0;
  for (size_t at = recipe.err.find(line); at != std::string::npos; at = recipe.err.find(line, at + 1)) ++said;
  EXPECT_EQ(said, 1) << recipe.err;
  ASSERT_EQ(tiny.train({"steps=1"}).code, 0);
  const Ran there = tiny.launch(2, {"steps=1"});
  EXPECT_EQ(there.code, 73) << there.err;
  EXPECT_EQ(there.json()["exit"], 73) << there.out;
}

// Started by mpirun itself, with nobody to gather what the ranks say.
TEST(Ranks, ErrorsAreSaidOnceUnderMpirunToo) {
  const TinyRun tiny;
  const auto lines = [](const Ran& ran) {
    std::istringstream in(ran.err);
    int said = 0;
    for (std::string line; std::getline(in, line);) said += line.starts_with("weft: ") ? 1 : 0;
    return said;
  };
  for (int i = 0; i < 3; ++i) {
    const Ran key = tiny.mpirun(3, {"optim.lrr=1"});
    EXPECT_NE(key.code, 0);
    EXPECT_EQ(lines(key), 1) << key.err;
    EXPECT_EQ(key.json()["exit"], 78) << key.out;
    EXPECT_EQ(tiny.launch(3, {"optim.lrr=1"}).code, 78) << "whoever ends first";
  }
  const Ran alone =
      tiny.mpirun(2, {"log.every=1000"}, {.environment = {"WEFT_FAULT=eio@rank=1,phase=backward"}});
  EXPECT_NE(alone.code, 0);
  const bool killed = alone.out.empty() && detect_launch_host().mpi_major >= 5;  // before it could tell
  EXPECT_TRUE(killed || alone.json().contains("error")) << alone.out;
}

// Rank 1 fails before it can tell the others, and rank 0 has nothing to say.
TEST(Ranks, WhatKeepsOneFromStartingIsSaid) {
  const TinyRun tiny;
  for (const bool json : {true, false}) {
    Words words{"train", "tiny.yaml"};
    if (json) words.emplace_back("--json-summary");
    const Ran ran = tiny.launch_unlike("export WEFT_FAULT=no-such-fault", words);
    EXPECT_EQ(ran.code, 64) << ran.err;
    const size_t said = ran.err.find("weft: WEFT_FAULT: 'no-such-fault' is not known");
    EXPECT_NE(said, std::string::npos) << ran.err;
    EXPECT_EQ(ran.err.find("WEFT_FAULT: ", said + 7), std::string::npos) << "once: " << ran.err;
    if (!json) continue;
    EXPECT_EQ(ran.json()["error"]["rank"], 1) << ran.out;
    EXPECT_NE(ran.out.find("'no-such-fault' is not known"), std::string::npos) << ran.out;
  }
}

TEST(Ranks, AFailureNamesItsRankAndStep) {
  const TinyRun tiny;
  const Ran one = tiny.train({}, {.environment = {"WEFT_FAULT=eio@step=3,phase=backward"}});
  EXPECT_EQ(one.json()["error"]["step"], 3) << one.out;
  const Ran two =
      tiny.launch(2, {"run=runs/two"}, {.environment = {"WEFT_FAULT=eio@rank=1,step=3,phase=backward"}});
  EXPECT_EQ(two.code, 74);
  EXPECT_EQ(two.json()["error"]["rank"], 1) << two.out;
  EXPECT_NE(two.err.find("weft: on rank 1: input/output error"), std::string::npos) << two.err;
  EXPECT_NE(two.json()["error"]["what"].get<std::string>().find("input/output error"), std::string::npos);
}

TEST(Ranks, AStoppedOneIsAHang) {
  const TinyRun tiny;
  const Ran ran = tiny.launch(
      2, {}, {.environment = {"WEFT_FAULT=stop@rank=1,step=3,phase=forward", "WEFT_STOP_LIMIT=2"}});
  EXPECT_EQ(ran.code, 81) << ran.err;
  EXPECT_EQ(ran.json()["exit"], 81) << ran.out;
  EXPECT_EQ(ran.json()["error"]["rank"], 1) << ran.out;
  EXPECT_NE(ran.err.find("no progress for 2 s: rank 1 is stopped"), std::string::npos) << ran.err;
}

// Of three ranks two notice, and both leave word of it.
TEST(Ranks, AFailureNamesTheRankAtFaultNotOneThatNoticed) {
  const TinyRun tiny;
  const Words words{"steps=5", "--resume", "auto"};
  for (const int rank : {0, 1, 2}) {
    SCOPED_TRACE(rank);
    const RunOptions killed{.environment = {text("WEFT_FAULT=kill@rank=", rank, ",step=4,phase=forward")}};
    const Ran launched = tiny.launch(3, words, killed);
    EXPECT_EQ(launched.code, 69) << launched.err;
    EXPECT_EQ(launched.json()["error"]["rank"], rank) << launched.out;
    if (rank == 0) continue;  // under mpirun rank 0 alone would say so
    EXPECT_EQ(tiny.mpirun(3, words, killed).json()["error"]["rank"], rank);
    const RunOptions failed{.environment = {text("WEFT_FAULT=eio@rank=", rank, ",step=4,phase=backward")}};
    EXPECT_EQ(tiny.mpirun(3, words, failed).json()["error"]["rank"], rank);
  }
}

TEST(Ranks, AFailedSaveNamesItsRankAndCause) {
  const TinyRun tiny;
  const RunOptions fault{.environment = {"WEFT_FAULT=eio@rank=1,step=3,phase=save.data"}};
  const auto expect = [&](const Ran& ran) {
    const auto error = ran.json()["error"];
    EXPECT_EQ(ran.json()["exit"], 74) << ran.out;
    EXPECT_EQ(error["rank"], 1) << ran.out;
    EXPECT_EQ(error["step"], 3) << ran.out;
    EXPECT_NE(error["what"].get<std::string>().find("input/output error"), std::string::npos) << ran.out;
    EXPECT_NE(ran.err.find("input/output error"), std::string::npos) << ran.err;
  };
  const Ran launched = tiny.launch(3, {"steps=3"}, fault);
  EXPECT_EQ(launched.code, 74) << launched.err;
  expect(launched);
  expect(tiny.mpirun(3, {"steps=3", "run=runs/mpirun"}, fault));
}

TEST(Ranks, OneThatDoesNotSeeTheFolderIsNamed) {
  const TinyRun tiny, elsewhere;
  const Ran ran =
      tiny.launch_unlike("cd " + elsewhere.folder().path(), {"train", "tiny.yaml", "--json-summary"});
  EXPECT_EQ(ran.code, 73) << ran.err;
  EXPECT_EQ(ran.json()["error"]["rank"], 1) << ran.out;
}

// Losses of routers are means over the tokens of both. Two steps: later a token whose heads are nearly tied
// may take another one, for the sums of two ranks round differently.
TEST(Ranks, RoutersLearnTheSame) {
  const TinyRun tiny;
  const Words words{
      "model.layers=[moh*2]", "model.heads=4", "model.mechanisms.moh.balance_weight=1", "steps=2",
      "batch_tokens=128",     "eval.every=2"};
  const auto with = [&](const char* run, const char* cp) {
    Words all = words;
    all.insert(all.end(), {run, cp, "mesh.dp=1"});
    return all;
  };
  const Ran one = tiny.train(with("run=runs/one", "mesh.cp=1"));
  const Ran two = tiny.launch(2, with("run=runs/two", "mesh.cp=2"));
  ASSERT_EQ(two.code, 0) << two.err;
  EXPECT_NEAR(two.json()["val_loss"].get<double>(), one.json()["val_loss"].get<double>(), 1e-4);
  EXPECT_NEAR(two.json()["grad_norm"].get<double>(), one.json()["grad_norm"].get<double>(),
              1e-3 * one.json()["grad_norm"].get<double>());
}

// The balance loss is one of a micro-batch, so the ranks that share micro-batches out change nothing.
TEST(Ranks, RoutersOfDataRanksLearnTheSame) {
  const TinyRun tiny;
  const Words words{"model.layers=[moh*2]",
                    "model.heads=4",
                    "model.mechanisms.moh.balance_weight=1",
                    "steps=2",
                    "context=64",
                    "batch_tokens=256",
                    "micro_tokens=64"};
  const Ran one = tiny.train(words + Words{"run=runs/one"});
  const Ran two = tiny.launch(2, words + Words{"run=runs/two", "mesh.dp=2", "mesh.cp=1"});
  ASSERT_EQ(one.code, 0) << one.err;
  ASSERT_EQ(two.code, 0) << two.err;
  EXPECT_NEAR(two.json()["loss"].get<double>(), one.json()["loss"].get<double>(), 1e-5);
  EXPECT_NEAR(two.json()["grad_norm"].get<double>(), one.json()["grad_norm"].get<double>(),
              1e-4 * one.json()["grad_norm"].get<double>());
}

}  // namespace
}  // namespace weft
