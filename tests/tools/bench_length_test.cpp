// What `weft bench length` measures: the mechanism with its settings, so many rounds, on one core.

#include "tools/bench_length.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <filesystem>

#include "autograd/check.h"
#include "autograd/flops.h"
#include "autograd/parallel.h"

namespace weft {
namespace {

int64_t threads() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return std::distance(begin(tasks), end(tasks));
}

double operations(const std::string& mechanism, int64_t rounds = 1) {
  const double before = counted_flops();
  bench_length(mechanism, rounds);
  return counted_flops() - before;
}

// The first test of this program, since OpenMP keeps the threads that it has once made.
TEST(BenchLength, UsesOneCore) {
  omp_set_num_threads(2);
  const int64_t before = threads();
  const std::vector<BenchRow> rows = bench_length("linear", 1);
  EXPECT_EQ(threads(), before);
  EXPECT_EQ(omp_get_max_threads(), 2) << "as before";
  ASSERT_EQ(rows.size(), 6u);
  EXPECT_EQ(rows[0].shape, "32 x 1024, H4 D32");
  EXPECT_EQ(rows[5].shape, "1 x 32768, H4 D32");
  for (const BenchRow& row : rows) {
    EXPECT_EQ(row.name, "linear");
    EXPECT_GT(row.ms, 0);
    EXPECT_EQ(row.tokens, 32768);
  }
  parallel_for(2, 1, [](int64_t, int64_t) {});
  EXPECT_EQ(threads(), before + 1) << "a second core would have been seen";
}

TEST(BenchLength, HonoursSettings) {
  // Pairs of a query and a key are as many as the window is long.
  EXPECT_NEAR(operations("sliding_window window=32") / operations("sliding_window window=16"), 2, 0.1);
  EXPECT_EQ(bench_length("sliding_window window=16", 1)[0].name, "sliding_window window=16");
  try {
    bench_length("sliding_window windw=16", 1);
    ADD_FAILURE() << "an unknown setting was taken";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Exit::recipe);
    EXPECT_NE(std::string(e.what()).find("windw"), std::string::npos) << e.what();
  }
  EXPECT_EQ(omp_get_max_threads(), 2) << "given back also then";
}

TEST(BenchLength, HonoursRounds) {
  // Six lengths a round, and once to warm up.
  EXPECT_NEAR(operations("sliding_window window=16", 2) / operations("sliding_window window=16", 1), 13.0 / 7,
              0.05);
}

TEST(BenchLength, RiseIsThatOfTheFittedLine) {
  const auto rows = [](std::initializer_list<double> times) {
    std::vector<BenchRow> all;
    for (const double ms : times) all.emplace_back().ms = ms;
    return all;
  };
  EXPECT_NEAR(rise_of(rows({10, 11, 12})), 0.2, 1e-12);
  EXPECT_NEAR(rise_of(rows({10, 10, 10, 10})), 0, 1e-12);
  EXPECT_NEAR(rise_of(rows({12, 9})), -0.25, 1e-12);
  EXPECT_NEAR(rise_of(rows({10, 13, 10})), 0, 1e-12) << "one slow length in the middle";
}

}  // namespace
}  // namespace weft
