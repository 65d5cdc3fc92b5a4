// Disks that fail while a checkpoint is written.

#include <gtest/gtest.h>

#include "tests/training/tiny_run.h"

namespace weft {
namespace {

TEST(SaveFailure, OneIsAWarning) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train({"run=runs/whole"}).code, 0);
  for (const char* fault : {"enospc@step=10,phase=save.mid", "eio@step=10,phase=save.fsync",
                            "eio@step=10,phase=save.manifest", "flip@step=10,phase=save.data"}) {
    SCOPED_TRACE(fault);
    const Ran ran =
        tiny.train({std::string("run=runs/") + fault}, {.environment = {std::string("WEFT_FAULT=") + fault}});
    EXPECT_EQ(ran.code, 0) << ran.err;
    EXPECT_NE(ran.err.find("step 10 was not saved"), std::string::npos) << ran.err;
    EXPECT_EQ(tiny.checkpoints(fault), (Words{"step-15", "step-20", "step-5"})) << "and no remains";
    const auto faults = tiny.events("fault", fault);
    ASSERT_EQ(faults.size(), 1u);
    EXPECT_EQ(faults[0]["step"], 10);
    EXPECT_EQ(tiny.weights_hash_at(20, fault), tiny.weights_hash_at(20, "whole"));
    EXPECT_EQ(tiny.weights_hash_at(5, fault), tiny.weights_hash_at(5, "whole"));
  }
}

// Damage that comes after the save is found by the load.
TEST(SaveFailure, ABitThatFlipsLaterIsFound) {
  const TinyRun tiny;
  const Ran whole = tiny.train({"run=runs/whole"});
  for (const char* phase : {"save.manifest", "save.latest"}) {
    SCOPED_TRACE(phase);
    const std::string run = std::string("run=runs/") + phase;
    tiny.train({run}, {.environment = {std::string("WEFT_FAULT=flip@step=20,phase=") + phase}});
    const Ran resumed = tiny.train({run, "--resume", "auto"});
    EXPECT_EQ(resumed.code, 0) << resumed.err;
    EXPECT_EQ(tiny.events("resume", phase).back()["step"], 15);
    EXPECT_EQ(resumed.json()["weights_hash"], whole.json()["weights_hash"]);
  }
}

TEST(SaveFailure, ThreeInARowEndTheRun) {
  const TinyRun tiny;
  const Ran whole = tiny.train({"run=runs/whole", "steps=30"});
  ASSERT_EQ(tiny.train({"steps=5"}).code, 0);
  const Ran ran =
      tiny.train({"steps=30", "--resume", "auto"}, {.environment = {"WEFT_FAULT=enospc@phase=save.mid"}});
  EXPECT_EQ(ran.code, 74) << ran.err;
  EXPECT_EQ(ran.json()["exit"], 74) << ran.out;
  EXPECT_EQ(tiny.events("fault").size(), 2u);
  EXPECT_EQ(tiny.checkpoints(), (Words{"step-5"}));
  EXPECT_EQ(tiny.weights_hash_at(5), tiny.weights_hash_at(5, "whole"));
  const Ran resumed = tiny.train({"steps=30", "--resume", "auto"});
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_EQ(resumed.json()["weights_hash"], whole.json()["weights_hash"]);
  EXPECT_EQ(resumed.json()["order_hash"], whole.json()["order_hash"]);
}

TEST(SaveFailure, TheLastStepIsNotGivenUp) {
  const TinyRun tiny;
  const Ran ran =
      tiny.train({"steps=6", "checkpoint.every=0"}, {.environment = {"WEFT_FAULT=eio@phase=save.rename"}});
  EXPECT_EQ(ran.code, 74) << "a run without its result is not done: " << ran.err;
}

}  // namespace
}  // namespace weft
