#include "optim/schedule.h"

#include <gtest/gtest.h>

#include "autograd/check.h"

namespace weft {
namespace {

TEST(Schedule, Cosine) {
  const Schedule s{Schedule::Kind::cosine, 111, 10, 0, 0.1};
  EXPECT_DOUBLE_EQ(s.at(0), 1.0 / 11);
  EXPECT_DOUBLE_EQ(s.at(9), 10.0 / 11);
  EXPECT_DOUBLE_EQ(s.at(10), 1);
  EXPECT_DOUBLE_EQ(s.at(60), 0.55);  // half way from 1 to the floor
  EXPECT_DOUBLE_EQ(s.at(110), 0.1);
  EXPECT_DOUBLE_EQ(s.at(5000), 0.1);
  for (int64_t step = 10; step < 110; ++step) EXPECT_GT(s.at(step), s.at(step + 1));
}

TEST(Schedule, WarmupStableDecay) {
  const Schedule s{Schedule::Kind::wsd, 100, 10, 20, 0.2};
  EXPECT_DOUBLE_EQ(s.at(0), 1.0 / 11);
  EXPECT_DOUBLE_EQ(s.at(9), 10.0 / 11);
  EXPECT_DOUBLE_EQ(s.at(10), 1);
  EXPECT_DOUBLE_EQ(s.at(79), 1);
  EXPECT_DOUBLE_EQ(s.at(80), 1 - 0.8 / 20);
  EXPECT_DOUBLE_EQ(s.at(89), 0.6);
  EXPECT_DOUBLE_EQ(s.at(99), 0.2);
  EXPECT_DOUBLE_EQ(s.at(1000), 0.2);
}

TEST(Schedule, Constant) {
  const Schedule s{Schedule::Kind::constant, 100, 4, 0, 0.3};
  EXPECT_DOUBLE_EQ(s.at(0), 0.2);
  EXPECT_DOUBLE_EQ(s.at(3), 0.8);
  EXPECT_DOUBLE_EQ(s.at(4), 1);
  EXPECT_DOUBLE_EQ(s.at(99), 1);
}

TEST(Schedule, Borders) {
  using Kind = Schedule::Kind;
  EXPECT_DOUBLE_EQ((Schedule{Kind::cosine, 10, 0, 0, 0}.at(0)), 1);          // no warmup
  EXPECT_DOUBLE_EQ((Schedule{Kind::cosine, 1, 0, 0, 0}.at(0)), 1);           // one step: not wasted
  EXPECT_DOUBLE_EQ((Schedule{Kind::cosine, 5, 100, 0, 0}.at(4)), 5. / 101);  // all of it warmup
  EXPECT_DOUBLE_EQ((Schedule{Kind::wsd, 10, 0, 0, 0}.at(9)), 1);             // no decay
  EXPECT_DOUBLE_EQ((Schedule{Kind::wsd, 10, 0, 10, 0}.at(0)), 0.9);          // decay from the start
  EXPECT_DOUBLE_EQ((Schedule{Kind::wsd, 10, 8, 8, 0}.at(9)), 0);             // they overlap: the lower holds
  EXPECT_DOUBLE_EQ((Schedule{Kind::wsd, 10, 8, 8, 0}.at(1)), 2.0 / 9);
}

TEST(Schedule, Names) {
  EXPECT_EQ(Schedule::kind_of("cosine"), Schedule::Kind::cosine);
  EXPECT_EQ(Schedule::kind_of("wsd"), Schedule::Kind::wsd);
  EXPECT_EQ(Schedule::kind_of("constant"), Schedule::Kind::constant);
  try {
    Schedule::kind_of("linear");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Exit::recipe);
  }
}

}  // namespace
}  // namespace weft
