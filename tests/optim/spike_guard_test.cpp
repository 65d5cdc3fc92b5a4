#include "optim/spike_guard.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/check.h"

namespace weft {
namespace {

using Action = SpikeGuard::Action;

// Steps [first, last) with losses near 2 and norms near 1.
void calm(SpikeGuard& guard, int64_t first, int64_t last) {
  for (int64_t step = first; step < last; ++step) {
    const double wave = std::sin(static_cast<double>(step));
    EXPECT_EQ(guard.judge(step, 2 + 0.1 * wave, 1 + 0.1 * wave).action, Action::apply) << step;
  }
}

TEST(SpikeGuard, SkipsWhatIsNotFinite) {
  SpikeGuard guard({});
  EXPECT_EQ(guard.judge(0, 2, 1).action, Action::apply);
  EXPECT_EQ(guard.judge(1, NAN, 1).reason, "the loss is nan");
  EXPECT_EQ(guard.judge(2, -INFINITY, 1).reason, "the loss is -inf");
  EXPECT_EQ(guard.judge(3, 2, -NAN).reason, "the gradient norm is nan");
  const auto verdict = guard.judge(4, 2, INFINITY);
  EXPECT_EQ(verdict.action, Action::skip);
  EXPECT_EQ(verdict.reason, "the gradient norm is inf");
  EXPECT_EQ(guard.judge(5, 2, 1).action, Action::apply);
}

TEST(SpikeGuard, SkipsSpikesOnlyIfAsked) {
  SpikeGuard on({.spike_zscore = 6}), off({});
  calm(on, 0, 40);
  calm(off, 0, 40);
  EXPECT_EQ(on.judge(40, 2, 3).action, Action::skip);
  EXPECT_NE(on.judge(41, 2, 3).reason.find("gradient norm 3 is"), std::string::npos);
  EXPECT_EQ(on.judge(42, 5, 1).action, Action::skip);
  EXPECT_EQ(on.judge(43, 0.1, 0.01).action, Action::apply);  // downwards is no spike
  EXPECT_EQ(off.judge(40, 50, 1000).action, Action::apply);
}

TEST(SpikeGuard, WaitsForEnoughValues) {
  SpikeGuard guard({.spike_zscore = 3});
  calm(guard, 0, 15);
  EXPECT_EQ(guard.judge(15, 2, 100).action, Action::apply);
}

TEST(SpikeGuard, StatisticsStayClean) {
  // After NaN, infinity and spikes it still tells the next spike from a calm step.
  SpikeGuard guard({.max_skips = 100, .window = 32, .spike_zscore = 6});
  calm(guard, 0, 32);
  for (int64_t step = 32; step < 60; step += 4) {
    EXPECT_EQ(guard.judge(step, NAN, NAN).action, Action::skip);
    EXPECT_EQ(guard.judge(step + 1, INFINITY, 1e30).action, Action::skip);
    EXPECT_EQ(guard.judge(step + 2, 2, 4).action, Action::skip);
    EXPECT_EQ(guard.judge(step + 3, 9, 1).action, Action::skip);
  }
  calm(guard, 60, 70);
  EXPECT_EQ(guard.judge(70, 2, 4).action, Action::skip);
}

TEST(SpikeGuard, ConstantValuesAreNoSpike) {
  SpikeGuard guard({.spike_zscore = 4});
  for (int64_t step = 0; step < 30; ++step) EXPECT_EQ(guard.judge(step, 2, 1).action, Action::apply);
  EXPECT_EQ(guard.judge(30, 2 + 1e-9, 1 + 1e-9).action, Action::apply);
  EXPECT_EQ(guard.judge(31, 2.1, 1).action, Action::skip);
}

TEST(SpikeGuard, TooManySkipsRewindThenStop) {
  SpikeGuard guard({.max_skips = 2, .window = 10, .rewinds = 1});
  EXPECT_EQ(guard.judge(0, NAN, 1).action, Action::skip);
  EXPECT_EQ(guard.judge(1, NAN, 1).action, Action::skip);
  const auto verdict = guard.judge(2, NAN, 1);
  EXPECT_EQ(verdict.action, Action::rewind);
  EXPECT_EQ(verdict.reason, "the loss is nan; 3 of the last 10 steps were not applied");
  EXPECT_EQ(guard.judge(0, NAN, 1).action, Action::skip);  // the count begins anew
  EXPECT_EQ(guard.judge(1, NAN, 1).action, Action::skip);
  EXPECT_EQ(guard.judge(2, NAN, 1).action, Action::stop);
}

TEST(SpikeGuard, SkipsLeaveTheWindow) {
  SpikeGuard guard({.max_skips = 1, .window = 10});
  for (int64_t step = 0; step < 100; step += 10) {
    EXPECT_EQ(guard.judge(step, NAN, 1).action, Action::skip) << step;
    EXPECT_EQ(guard.judge(step + 1, 2, 1).action, Action::apply);
  }
  EXPECT_EQ(guard.judge(99, NAN, 1).action, Action::rewind);
}

TEST(SpikeGuard, NoSkipBorneMeansRewindAtOnce) {
  EXPECT_EQ(SpikeGuard({.max_skips = 0}).judge(0, NAN, 1).action, Action::rewind);
  EXPECT_EQ(SpikeGuard({.max_skips = 0, .rewinds = 0}).judge(0, NAN, 1).action, Action::stop);
}

TEST(SpikeGuard, RestoredDecidesAlike) {
  const SpikeGuardConfig config{.max_skips = 2, .window = 20, .spike_zscore = 6};
  SpikeGuard a(config), b(config);
  calm(a, 0, 18);
  EXPECT_EQ(a.judge(18, NAN, 1).action, Action::skip);
  EXPECT_EQ(a.judge(19, 2, 9).action, Action::skip);
  b.restore(a.state());
  EXPECT_EQ(a.state(), b.state());
  for (int64_t step = 20; step < 60; ++step) {
    const double norm = step % 9 == 0 ? 5 : 1 + 0.1 * std::cos(static_cast<double>(step));
    const auto x = a.judge(step, 2, norm), y = b.judge(step, 2, norm);
    EXPECT_EQ(x.action, y.action) << step;
    EXPECT_EQ(x.reason, y.reason) << step;
  }
}

TEST(SpikeGuard, GoingBackDoesNotForgetThatItDid) {
  SpikeGuard guard({.max_skips = 0, .rewinds = 1});
  const std::vector<double> saved = guard.state();
  EXPECT_EQ(guard.judge(5, NAN, 1).action, Action::rewind);
  guard.restore(saved);
  EXPECT_EQ(guard.judge(5, NAN, 1).action, Action::stop);
}

TEST(SpikeGuard, GoesBackOnRequestAsOftenAsInAll) {
  SpikeGuard guard({.max_skips = 0, .rewinds = 2});
  EXPECT_TRUE(guard.go_back());
  EXPECT_EQ(guard.rewinds(), 1);
  EXPECT_EQ(guard.judge(5, NAN, 1).action, Action::rewind);
  EXPECT_FALSE(guard.go_back());
  EXPECT_EQ(guard.judge(6, NAN, 1).action, Action::stop);
}

TEST(SpikeGuard, RestoresIntoASmallerWindow) {
  SpikeGuard wide({.window = 64, .spike_zscore = 6}), narrow({.window = 8, .spike_zscore = 6});
  calm(wide, 0, 64);
  narrow.restore(wide.state());
  EXPECT_EQ(narrow.state().size(), 3u + 2 * 8);
}

TEST(SpikeGuard, RefusesAnotherState) {
  SpikeGuard guard({});
  for (const std::vector<double>& bad :
       std::vector<std::vector<double>>{{}, {0, 1, 0}, {0, -1, 2, 3, 4, 5}, {NAN, NAN, NAN}, {0, 0, 0, 1}}) {
    try {
      guard.restore(bad);
      FAIL();
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Exit::data);
    }
  }
}

}  // namespace
}  // namespace weft
