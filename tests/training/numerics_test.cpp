// Steps whose numbers are not numbers, and spikes.

#include <gtest/gtest.h>

#include <filesystem>

#include "tests/training/tiny_run.h"
#include "training/data/stories.h"

namespace weft {
namespace {

TEST(Numerics, NanGradientsChangeNoWeight) {
  const TinyRun tiny;
  // The last step is saved whatever comes of it.
  const Ran ran = tiny.train({"steps=8", "checkpoint.every=1"},
                             {.environment = {"WEFT_FAULT=nan@step=8,phase=backward"}});
  ASSERT_EQ(ran.code, 0) << ran.err;
  ASSERT_EQ(tiny.train({"steps=12", "checkpoint.every=1", "--resume", "auto"}).code, 0);
  const auto skips = tiny.events("skip");
  ASSERT_EQ(skips.size(), 1u);
  EXPECT_EQ(skips[0]["step"], 8);
  EXPECT_NE(skips[0]["reason"].get<std::string>().find("gradient norm is nan"), std::string::npos)
      << skips[0];
  EXPECT_EQ(tiny.weights_hash_at(7), tiny.weights_hash_at(8));
  EXPECT_NE(tiny.weights_hash_at(6), tiny.weights_hash_at(7));
  EXPECT_NE(tiny.weights_hash_at(8), tiny.weights_hash_at(9));
  EXPECT_EQ(tiny.steps()[7]["grad_norm"], nullptr);
  EXPECT_TRUE(tiny.steps()[8]["grad_norm"].is_number());
  EXPECT_TRUE(tiny.steps()[11]["loss"].is_number());
}

// Every phase that computes can be struck, and no number that is none reaches the weights of a checkpoint.
TEST(Numerics, FaultsStrikeInEveryPhase) {
  const TinyRun tiny;
  const Ran whole = tiny.train({"run=runs/whole", "steps=6"});
  for (const std::string fault : {"nan@step=4,phase=forward", "nan@step=4,phase=collective",
                                  "nan@step=4,phase=optimizer", "flip@step=4,phase=backward"}) {
    SCOPED_TRACE(fault);
    const Ran ran = tiny.train({"run=runs/" + fault, "steps=6"}, {.environment = {"WEFT_FAULT=" + fault}});
    const auto steps = tiny.steps(fault);
    ASSERT_GE(steps.size(), 4u) << ran.err;
    EXPECT_EQ(steps[2]["grad_norm"], tiny.steps("whole")[2]["grad_norm"]);
    if (fault.starts_with("flip"))
      EXPECT_GT(steps[3]["grad_norm"], 1e9);
    else if (fault.ends_with("optimizer"))
      EXPECT_EQ(steps[4]["loss"], nullptr);
    else
      EXPECT_EQ(tiny.events("skip", fault).at(0)["step"], 4);
  }
}

TEST(Numerics, TooManySkipsGoBackOnceAndThenStop) {
  const TinyRun tiny;
  const Words words{"numerics.max_skips=1", "numerics.rewind=1"};
  const Ran ran = tiny.train(words, {.environment = {"WEFT_FAULT=nan@step=8;nan@step=9"}});
  EXPECT_EQ(ran.code, 80) << ran.err;
  EXPECT_EQ(ran.json()["exit"], 80) << ran.out;
  const auto rewinds = tiny.events("rewind");
  ASSERT_EQ(rewinds.size(), 1u);
  EXPECT_EQ(rewinds[0]["from"], 9);
  EXPECT_EQ(rewinds[0]["step"], 5);
  EXPECT_EQ(tiny.checkpoints(), (Words{"step-5"}));
  EXPECT_NE(ran.err.find("weft: step 9: "), std::string::npos) << "as metrics.jsonl counts: " << ran.err;
  EXPECT_NE(ran.err.find(", again after going back"), std::string::npos) << ran.err;
  const Ran at_once = tiny.train({"numerics.max_skips=0", "numerics.rewind=0", "run=runs/at_once"},
                                 {.environment = {"WEFT_FAULT=nan@step=8"}});
  EXPECT_EQ(at_once.code, 80);
  EXPECT_EQ(at_once.err.find("going back"), std::string::npos) << "it did not: " << at_once.err;
  // Nothing is lost: without the cause, the run goes on.
  const Ran resumed = tiny.train({"--resume", "auto"});
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_EQ(tiny.steps().size(), 20u);
}

// Weights that are lost make every later loss one too. Saved meanwhile, they would be what the run goes back
// to, and the good checkpoints would give way to them.
TEST(Numerics, LostWeightsComeBackFromTheCheckpointBefore) {
  const TinyRun tiny;
  for (const std::string fault : {"nan@step=7,phase=optimizer", "nan@step=10,phase=optimizer"}) {
    SCOPED_TRACE(fault);
    const Words words{"checkpoint.keep=1", "numerics.max_skips=6", "run=runs/" + fault};
    const Ran ran = tiny.train(words, {.environment = {"WEFT_FAULT=" + fault}});
    // Going back it meets the same fault again: the second time is the end, as of any trouble.
    EXPECT_EQ(ran.code, 80) << ran.err;
    EXPECT_EQ(tiny.events("rewind", fault).at(0)["step"], 5);
    EXPECT_EQ(tiny.checkpoints(fault), Words{"step-5"});
    const Ran resumed = tiny.train(Words{"checkpoint.keep=1", "run=runs/" + fault, "--resume", "auto"});
    EXPECT_EQ(resumed.code, 0) << resumed.err;
    EXPECT_LT(resumed.json()["val_loss"], 4.0);
  }
}

// What nothing was learned in at the end is no end: the run goes back and on with other data, and only where
// it may not, it fails.
TEST(Numerics, RefusedStepsAtTheEndAreNoEnd) {
  const TinyRun tiny;
  const RunOptions broken{.environment = {"WEFT_FAULT=nan@step=10;nan@step=11;nan@step=12"}};
  const Words words{"steps=12", "numerics.rewind=0", "--resume", "auto"};
  const Ran failed = tiny.train(words, broken);
  EXPECT_EQ(failed.code, 80) << failed.err;
  EXPECT_NE(failed.err.find("the last 3 steps were not applied: the loss is nan"), std::string::npos)
      << failed.err;
  EXPECT_EQ(failed.json()["error"]["step"], 12) << failed.out;
  EXPECT_EQ(tiny.checkpoints(), (Words{"step-5"}))
      << "behind the steps that were not applied nothing is saved";
  EXPECT_EQ(tiny.train(words, broken).code, 80) << "nor is it done when it is called again";
  EXPECT_NE(tiny.weft({"report", "runs/tiny", "--json"}).json()["runs"][0]["status"], "done");
  const Ran mended = tiny.train(words);
  EXPECT_EQ(mended.code, 0) << mended.err;
  EXPECT_TRUE(mended.json()["loss"].is_number());

  const Ran twice = tiny.train({"steps=12", "run=runs/twice"}, broken);
  EXPECT_EQ(twice.code, 80) << "on other data it fails again: " << twice.err;
  EXPECT_EQ(tiny.events("rewind", "twice").size(), 1u);

  // Two are no more than a run may skip anywhere. Its loss is that of the last step that was applied.
  const Ran two =
      tiny.train({"steps=12", "run=runs/two"}, {.environment = {"WEFT_FAULT=nan@step=11;nan@step=12"}});
  EXPECT_EQ(two.code, 0) << two.err;
  EXPECT_EQ(two.json()["loss"], tiny.steps("two")[9]["loss"]);
  EXPECT_EQ(two.json()["grad_norm"], tiny.steps("two")[9]["grad_norm"]);
  const Ran again = tiny.train({"steps=12", "run=runs/two", "--resume", "auto"});
  for (const char* key : {"loss", "grad_norm", "val_loss", "step", "weights_hash"})
    EXPECT_EQ(again.json()[key], two.json()[key]) << key;
}

// Without any checkpoint before, what was learned is saved all the same.
TEST(Numerics, RefusedStepsAtTheEndLoseNothing) {
  const TinyRun tiny;
  const Ran ran = tiny.train({"steps=12", "checkpoint.every=0"},
                             {.environment = {"WEFT_FAULT=nan@step=10;nan@step=11;nan@step=12"}});
  EXPECT_EQ(ran.code, 80) << ran.err;
  EXPECT_EQ(tiny.checkpoints(), (Words{"step-9"})) << "as the step that learned it";
  const Ran again = tiny.train({"steps=12", "checkpoint.every=0", "--resume", "auto"});
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(again.json()["step"], 12);
  EXPECT_EQ(tiny.steps().size(), 12u);
  const Ran nothing =
      tiny.train({"steps=2", "checkpoint.every=0", "run=runs/nothing"}, {.environment = {"WEFT_FAULT=nan"}});
  EXPECT_EQ(nothing.code, 80) << nothing.err;
  EXPECT_FALSE(std::filesystem::exists(tiny.run("nothing") + "/checkpoints")) << "nothing was learned";
}

// What a run that was asked to stop saves is good too.
TEST(Numerics, AStopWaitsForAStepThatWasApplied) {
  const TinyRun tiny;
  RunOptions options{.environment = {"WEFT_FAULT=nan@step=6;nan@step=7;slow:400@phase=load,step=6"}};
  options.stop_at_file = "runs/tiny/latest";  // of step 5
  const Ran stopped = tiny.train({}, options);
  EXPECT_EQ(stopped.code, 75) << stopped.err;
  EXPECT_EQ(tiny.checkpoints(), (Words{"step-5", "step-8"}));
}

// Not for ever: where no step is applied any more, the checkpoint before is what the run goes on from.
TEST(Numerics, AStopDoesNotWaitForStepsThatAreNeverApplied) {
  const TinyRun tiny;
  std::string faults = "slow:400@phase=load,step=6";
  for (int step = 6; step <= 60; ++step) faults += ";nan@step=" + std::to_string(step);
  RunOptions options{.environment = {"WEFT_FAULT=" + faults}};
  options.stop_at_file = "runs/tiny/latest";  // of step 5
  const Ran stopped = tiny.train({"steps=60", "numerics.max_skips=60"}, options);
  EXPECT_EQ(stopped.code, 75) << stopped.err;
  EXPECT_EQ(stopped.json()["step"], 5);
  EXPECT_EQ(tiny.checkpoints(), (Words{"step-5"}));
  EXPECT_EQ(tiny.train({"steps=60", "--resume", "auto"}).code, 0);
}

// Back at a checkpoint there is nothing to wait for.
TEST(Numerics, AStopEndsWhereTheRunWentBackTo) {
  const TinyRun tiny;
  RunOptions options{.environment = {"WEFT_FAULT=slow:400@phase=load,step=6;nan@step=6;nan@step=7"}};
  options.stop_at_file = "runs/tiny/latest";  // of step 5
  const Ran stopped = tiny.train({"numerics.max_skips=1"}, options);
  EXPECT_EQ(stopped.code, 75) << stopped.err;
  EXPECT_EQ(stopped.json()["step"], 5);
  EXPECT_EQ(tiny.checkpoints(), (Words{"step-5"}));
  EXPECT_EQ(tiny.events("rewind").size(), 1u);
}

TEST(Numerics, NoCheckpointToGoBackTo) {
  const TinyRun tiny;
  const Ran ran = tiny.train({"numerics.max_skips=0"}, {.environment = {"WEFT_FAULT=nan@step=3"}});
  EXPECT_EQ(ran.code, 80) << ran.err;
  EXPECT_NE(ran.err.find("no checkpoint"), std::string::npos) << ran.err;
}

// Stories, and from step 30 on three steps of what no story contains: steps read 256 bytes each, in file
// order.
Words spiking_run(const TinyRun& tiny) {
  std::string text = story_corpus(7, 30 * 256).substr(0, 30 * 256);
  for (int i = 0; i < 3 * 256; ++i) text += "#@%^&|~<>{}="[i * i % 12];
  tiny.folder().write("stories.txt", text + story_corpus(8, 60'000));
  return {"steps=40",           "data.shuffle=false",   "data.val=0",  "numerics.spike_zscore=9",
          "numerics.window=16", "numerics.max_skips=1", "eval.every=0"};
}

TEST(Numerics, ASpikeOfBadDataIsSteppedOver) {
  const TinyRun tiny;
  const Words words = spiking_run(tiny);
  const Ran ran = tiny.train(words);
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.json()["step"], 40);
  EXPECT_EQ(ran.json()["val_loss"], nullptr);
  const auto rewinds = tiny.events("rewind"), skips = tiny.events("skip");
  ASSERT_EQ(rewinds.size(), 1u) << ran.err;
  EXPECT_EQ(rewinds[0]["step"], 30);
  EXPECT_EQ(rewinds[0]["from"], 32);
  ASSERT_GE(skips.size(), 3u);
  EXPECT_NE(skips[0]["reason"].get<std::string>().find("deviations above the mean"), std::string::npos);
  // After going back the data in between are passed over.
  for (const auto& step : tiny.steps())
    if (step["step"] > 32) {
      EXPECT_LT(step["loss"], 5) << step;
    }
}

// Killed between going back and the next checkpoint, a run does not meet the same data again.
TEST(Numerics, GoingBackOutlivesTheProcess) {
  const TinyRun tiny;
  Words words = spiking_run(tiny);
  Words whole = words;
  whole.push_back("run=runs/whole");
  const Ran undisturbed = tiny.train(whole);
  ASSERT_EQ(undisturbed.code, 0) << undisturbed.err;
  words.insert(words.end(), {"--resume", "auto"});
  ASSERT_EQ(tiny.train(words, {.environment = {"WEFT_FAULT=kill@step=34,phase=backward"}}).code, 128 + 9);
  ASSERT_EQ(tiny.events("rewind").size(), 1u);
  const Ran resumed = tiny.train(words);
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_EQ(tiny.events("rewind").size(), 1u);
  EXPECT_EQ(resumed.json()["weights_hash"], undisturbed.json()["weights_hash"]);
  EXPECT_EQ(resumed.json()["order_hash"], undisturbed.json()["order_hash"]);
}

}  // namespace
}  // namespace weft
