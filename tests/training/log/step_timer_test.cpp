#include "training/log/step_timer.h"

#include <gtest/gtest.h>

#include "tests/training/checkpoint/support.h"

namespace weft {
namespace {

class StepTimerTest : public testing::Test {
 protected:
  double now = 100;
  StepTimer timer{10, [this] { return now; }};

  StepTimes step_of(double seconds, int64_t tokens = 1000) {
    now += seconds;
    return timer.finish_step(tokens);
  }
};

TEST_F(StepTimerTest, SplitsAStep) {
  {
    const auto span = timer.data();
    now += 1;
  }
  {
    const auto span = timer.communication();
    now += 2;
    const auto inner = timer.communication();
    now += 0.5;
  }
  timer.add_communication(0.25);
  const StepTimes times = step_of(4, 1500);
  EXPECT_DOUBLE_EQ(times.step_s, 7.5);
  EXPECT_DOUBLE_EQ(times.data_s, 1);
  EXPECT_DOUBLE_EQ(times.comm_s, 2.75);
  EXPECT_DOUBLE_EQ(times.tokens_per_s, 200);
  const StepTimes next = step_of(1);
  EXPECT_DOUBLE_EQ(next.step_s, 1);
  EXPECT_DOUBLE_EQ(next.data_s, 0);
  EXPECT_DOUBLE_EQ(next.comm_s, 0);
}

TEST_F(StepTimerTest, APauseBelongsToNoStep) {
  timer.add_communication(0.5);
  {
    const auto evaluation = timer.pause();
    now += 10;
    {
      const auto data = timer.data();
      now += 5;
    }
    const auto saving = timer.pause();
    const auto communication = timer.communication();
    now += 20;
  }
  const StepTimes times = step_of(2);
  EXPECT_DOUBLE_EQ(times.step_s, 2);
  EXPECT_DOUBLE_EQ(times.data_s, 0);
  EXPECT_DOUBLE_EQ(times.comm_s, 0.5);
  EXPECT_DOUBLE_EQ(timer.pace().eta_s, 18);
  EXPECT_DOUBLE_EQ(timer.pace().elapsed_s, 37);
}

TEST_F(StepTimerTest, PaceForgetsTheFirstStepAndFollowsTheRecentOnes) {
  EXPECT_DOUBLE_EQ(timer.pace().eta_s, 0);
  step_of(30);
  EXPECT_DOUBLE_EQ(timer.pace().eta_s, 270);
  step_of(2);
  EXPECT_DOUBLE_EQ(timer.pace().tokens_per_s, 500);
  EXPECT_DOUBLE_EQ(timer.pace().eta_s, 16);
  step_of(4);
  EXPECT_GT(timer.pace().eta_s, 7 * 2);
  EXPECT_LT(timer.pace().eta_s, 7 * 4);
  for (int i = 0; i < 7; ++i) step_of(4);
  EXPECT_DOUBLE_EQ(timer.pace().eta_s, 0);
  step_of(4);  // beyond the plan
  EXPECT_DOUBLE_EQ(timer.pace().eta_s, 0);
}

TEST_F(StepTimerTest, AnOpenSpanIsAMistake) {
  const auto span = timer.data();
  expect_error(Exit::internal, {"span"}, [&] { timer.finish_step(1); });
}

TEST_F(StepTimerTest, AStepOfNoTimeIsFinite) { EXPECT_LT(step_of(0).tokens_per_s, 1e300); }

TEST(Clock, IsoTime) {
  EXPECT_EQ(iso_time(0), "1970-01-01T00:00:00.000Z");
  EXPECT_EQ(iso_time(1780000000.1239), "2026-05-28T20:26:40.123Z");
}

}  // namespace
}  // namespace weft
