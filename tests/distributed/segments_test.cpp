// Properties that every plan has, whatever the lengths; and how fair the plans are.
#include "distributed/segments.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "autograd/check.h"
#include "autograd/philox.h"

namespace weft {
namespace {

const SegmentPlan plans[] = {SegmentPlan::contiguous, SegmentPlan::zigzag, SegmentPlan::balanced};

int64_t sum(const std::vector<int64_t>& v) { return std::accumulate(v.begin(), v.end(), int64_t{0}); }

// Each token once, in order, cut at multiples of align or at a document's end, none empty, none to be joined.
void expect_partition(const std::vector<Segments>& lists, const std::vector<int64_t>& lengths, int ranks,
                      int64_t align) {
  ASSERT_EQ(std::ssize(lists), ranks);
  std::vector<std::vector<int>> seen;
  for (int64_t n : lengths) seen.emplace_back(n, 0);
  for (const Segments& list : lists)
    for (size_t i = 0; i < list.size(); ++i) {
      const Segment& s = list[i];
      ASSERT_LT(s.begin, s.end);
      ASSERT_GE(s.begin, 0);
      ASSERT_LE(s.end, lengths[s.document]);
      EXPECT_EQ(s.begin % align, 0);
      EXPECT_TRUE(s.end % align == 0 || s.end == lengths[s.document]);
      for (int64_t t = s.begin; t < s.end; ++t) ++seen[s.document][t];
      if (i > 0) {
        const Segment& before = list[i - 1];
        EXPECT_TRUE(before.document < s.document || (before.document == s.document && before.end < s.begin));
      }
    }
  for (const auto& document : seen)
    for (int times : document) ASSERT_EQ(times, 1);
}

double unfairness(const std::vector<Segments>& lists, int64_t (*measure)(const Segments&)) {
  int64_t highest = 0, all = 0;
  for (const Segments& list : lists) highest = std::max(highest, measure(list)), all += measure(list);
  return static_cast<double>(highest) * static_cast<double>(lists.size()) / static_cast<double>(all);
}

// Lengths as in packed web text: log-normal, cut at `longest`, until `total` tokens.
std::vector<int64_t> packed_lengths(uint32_t seed, int64_t total, double median, double sigma,
                                    int64_t longest) {
  const RandomKey key{seed, stream_of("segments_test"), 0};
  std::vector<int64_t> lengths;
  for (uint64_t i = 0; total > 0; ++i) {
    const auto length = static_cast<int64_t>(median * std::exp(sigma * key.normal(i)));
    lengths.push_back(std::min({std::max<int64_t>(length, 1), longest, total}));
    total -= lengths.back();
  }
  return lengths;
}

TEST(Segments, EveryPlanIsAnExactPartition) {
  const std::vector<std::vector<int64_t>> batches = {{},
                                                     {0},
                                                     {1},
                                                     {0, 0, 5, 0},
                                                     {500},
                                                     {63, 1, 64, 65},
                                                     {1000},
                                                     {3, 3, 3},
                                                     {17, 0, 400, 2},
                                                     {1, 1, 1, 1, 1},
                                                     {128, 128, 128},
                                                     {4096, 5}};
  for (const auto& lengths : batches)
    for (int ranks : {1, 2, 3, 4, 7, 8, 33})
      for (int64_t align : {1, 3, 64, 1000})
        for (SegmentPlan plan : plans) {
          SCOPED_TRACE(text("plan ", static_cast<int>(plan), " ranks ", ranks, " align ", align, " tokens ",
                            sum(lengths), " in ", lengths.size()));
          expect_partition(plan_segments(plan, lengths, ranks, align), lengths, ranks, align);
        }
}

TEST(Segments, RandomBatchesAreExactPartitions) {
  const RandomKey key{1, stream_of("segments_test.random"), 0};
  for (uint64_t trial = 0; trial < 200; ++trial) {
    const PhiloxBlock r = key.draw(trial);
    const int ranks = 1 + static_cast<int>(r[0] % 9);
    const int64_t align = 1 + r[1] % 70;
    std::vector<int64_t> lengths;
    for (uint32_t i = 0; i < r[2] % 12; ++i) lengths.push_back(key.draw(trial, 1 + i)[0] % 300);
    for (SegmentPlan plan : plans)
      expect_partition(plan_segments(plan, lengths, ranks, align), lengths, ranks, align);
  }
}

TEST(Segments, ContiguousIsInRankOrderAndEqual) {
  const std::vector<int64_t> lengths = {100, 7, 30, 263};
  const auto lists = plan_segments(SegmentPlan::contiguous, lengths, 4);
  Segments joined;
  for (const Segments& list : lists) {
    EXPECT_EQ(count_tokens(list), 100);
    joined.insert(joined.end(), list.begin(), list.end());
  }
  for (size_t i = 1; i < joined.size(); ++i)
    EXPECT_TRUE(joined[i - 1].document < joined[i].document || joined[i - 1].end == joined[i].begin);
  EXPECT_EQ(lists[0], (Segments{{0, 0, 100}}));
  EXPECT_EQ(lists[1], (Segments{{1, 0, 7}, {2, 0, 30}, {3, 0, 63}}));
}

TEST(Segments, ZigzagPairsTheEnds) {
  const std::vector<int64_t> lengths = {64};
  const auto lists = plan_segments(SegmentPlan::zigzag, lengths, 4);
  EXPECT_EQ(lists[0], (Segments{{0, 0, 8}, {0, 56, 64}}));
  EXPECT_EQ(lists[1], (Segments{{0, 8, 16}, {0, 48, 56}}));
  EXPECT_EQ(lists[3], (Segments{{0, 24, 40}}));  // neighbours join
}

TEST(Segments, ZigzagIsFairForEqualDocuments) {
  for (int documents : {1, 2, 3, 5})
    for (int ranks : {2, 3, 4, 8}) {
      const std::vector<int64_t> lengths(documents, 4096);
      const auto lists = plan_segments(SegmentPlan::zigzag, lengths, ranks);
      EXPECT_LE(unfairness(lists, causal_cost), 1.005) << documents << " documents, " << ranks << " ranks";
      EXPECT_LE(unfairness(lists, count_tokens), 1.005);
    }
}

TEST(Segments, BalancedIsZigzagForOneDocument) {
  const std::vector<int64_t> lengths = {32768};
  const auto lists = plan_segments(SegmentPlan::balanced, lengths, 8, 64);
  EXPECT_LE(unfairness(lists, causal_cost), 1.02);
  for (const Segments& list : lists) EXPECT_LE(list.size(), 2u);
}

TEST(Segments, BalancedIsFairOnPackedDocuments) {
  for (uint32_t seed = 0; seed < 20; ++seed)
    for (int ranks : {2, 4, 8, 16, 64}) {
      const int64_t total = int64_t{8192} * ranks;
      const auto lengths = packed_lengths(seed, total, 900, 1.6, total / 2);
      const auto lists = plan_segments(SegmentPlan::balanced, lengths, ranks, 64);
      EXPECT_LE(unfairness(lists, causal_cost), 1.05) << "seed " << seed << " ranks " << ranks;
      EXPECT_LE(unfairness(lists, count_tokens), 1.05) << "seed " << seed << " ranks " << ranks;
      const auto plain = plan_segments(SegmentPlan::contiguous, lengths, ranks, 64);
      EXPECT_LE(unfairness(lists, causal_cost), unfairness(plain, causal_cost));
    }
}

TEST(Segments, CutsMoveToTheNearestMultiple) {
  const std::vector<int64_t> lengths = {100};
  const auto lists = plan_segments(SegmentPlan::contiguous, lengths, 3, 16);  // 33.3, 66.6 -> 32, 64
  EXPECT_EQ(lists[0], (Segments{{0, 0, 32}}));
  EXPECT_EQ(lists[1], (Segments{{0, 32, 64}}));
  EXPECT_EQ(lists[2], (Segments{{0, 64, 100}}));
}

TEST(Segments, ADocumentShorterThanAlignIsNotCut) {
  const std::vector<int64_t> lengths = {10};
  const auto lists = plan_segments(SegmentPlan::contiguous, lengths, 4, 64);
  int holders = 0;
  for (const Segments& list : lists) holders += !list.empty();
  EXPECT_EQ(holders, 1);
}

TEST(Segments, PlanningIsCheap) {
  const auto lengths = packed_lengths(3, 1 << 20, 900, 1.6, 1 << 19);
  const auto start = std::chrono::steady_clock::now();
  plan_segments(SegmentPlan::balanced, lengths, 64, 64);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  EXPECT_LT(took.count(), 0.05);
}

TEST(Segments, CostIsTheSumOfKeysSeen) {
  EXPECT_EQ(causal_cost({{0, 0, 4}}), 1 + 2 + 3 + 4);
  EXPECT_EQ(causal_cost({{0, 2, 4}, {1, 0, 1}}), 3 + 4 + 1);
  EXPECT_EQ(count_tokens({{0, 2, 4}, {1, 0, 1}}), 3);
}

TEST(Segments, NonsenseIsRefused) {
  EXPECT_THROW(plan_segments(SegmentPlan::contiguous, std::vector<int64_t>{-1}, 2), Error);
  EXPECT_THROW(plan_segments(SegmentPlan::contiguous, std::vector<int64_t>{4}, 0), Error);
  EXPECT_THROW(plan_segments(SegmentPlan::contiguous, std::vector<int64_t>{4}, 2, 0), Error);
}

}  // namespace
}  // namespace weft
