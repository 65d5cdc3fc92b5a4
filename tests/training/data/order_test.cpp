#include "training/data/order.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "fixtures.h"

namespace weft {
namespace {

using Samples = std::vector<int64_t>;

Samples permutation(int64_t n, std::array<uint32_t, 2> key, int64_t epoch) {
  Samples out;
  for (int64_t k = 0; k < n; ++k) out.push_back(permuted(k, n, key, epoch));
  return out;
}

Samples first(const SampleOrder& order, int64_t count) {
  Samples out;
  for (int64_t i = 0; i < count; ++i) out.push_back(order(i));
  return out;
}

TEST(Order, APermutationOfAnySize) {
  for (const int64_t n : {1, 2, 3, 5, 7, 15, 16, 17, 63, 64, 65, 255, 257, 1000, 4097, 65537, 100003}) {
    for (const int64_t epoch : {0, 1}) {
      Samples samples = permutation(n, {1, 2}, epoch);
      std::sort(samples.begin(), samples.end());
      Samples all(n);
      std::iota(all.begin(), all.end(), 0);
      ASSERT_EQ(samples, all) << n;
    }
  }
}

TEST(Order, VeryManySamplesStayInRangeAndDiffer) {
  const int64_t n = (int64_t{1} << 40) + 12345;
  Samples seen;
  for (int64_t k = 0; k < 1000; ++k) seen.push_back(permuted(n - 1 - k, n, {1, 2}, 3));
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(std::unique(seen.begin(), seen.end()), seen.end());
  EXPECT_GE(seen.front(), 0);
  EXPECT_LT(seen.back(), n);
  EXPECT_GT(seen.back(), n / 2);  // spread over the whole range
}

TEST(Order, KeyAndEpochChooseThePermutation) {
  const Samples base = permutation(1000, {1, 2}, 0);
  EXPECT_EQ(base, permutation(1000, {1, 2}, 0));
  EXPECT_NE(base, permutation(1000, {1, 3}, 0));
  EXPECT_NE(base, permutation(1000, {2, 2}, 0));
  EXPECT_NE(base, permutation(1000, {1, 2}, 1));
  EXPECT_NE(base, permutation(1000, {1, 2}, int64_t{1} << 32));
}

// Every sample is equally likely in every place: chi squared over keys.
TEST(Order, ThePermutationIsFair) {
  for (const int64_t n : {3, 7, 10}) {
    const int keys = 20'000;
    std::vector<double> count(n * n);
    for (int key = 0; key < keys; ++key)
      for (int64_t k = 0; k < n; ++k) ++count[k * n + permuted(k, n, {static_cast<uint32_t>(key), 99}, 0)];
    const double expected = double(keys) / n;
    double chi = 0;
    for (const double c : count) chi += (c - expected) * (c - expected) / expected;
    // Each row and column sums to the number of keys: a square table has (n - 1)^2 degrees of freedom.
    chi *= double(n - 1) / n;
    const double freedom = double((n - 1) * (n - 1));
    EXPECT_LT(chi, freedom + 5 * std::sqrt(2 * freedom)) << n;
  }
}

TEST(Order, AnEpochHoldsEverySampleOnce) {
  const SampleOrder order({{97, 1}}, 5);
  for (int epoch = 0; epoch < 3; ++epoch) {
    Samples samples;
    for (int64_t i = 0; i < 97; ++i) samples.push_back(order(epoch * 97 + i));
    std::sort(samples.begin(), samples.end());
    for (int64_t i = 0; i < 97; ++i) ASSERT_EQ(samples[i], i);
  }
  EXPECT_NE(first(order, 97), first(SampleOrder({{97, 1}}, 6), 97));
  EXPECT_NE(first(order, 97), first(SampleOrder({{97, 1}}, 5 + (uint64_t{1} << 32)), 97));
}

TEST(Order, WithoutShufflingInFileOrder) {
  EXPECT_EQ(first(SampleOrder({{3, 1}}, 5, false), 7), (Samples{0, 1, 2, 0, 1, 2, 0}));
}

TEST(Order, MixturesKeepTheirProportions) {
  for (const std::vector<double>& weights : {std::vector<double>{1, 1},
                                             {0.7, 0.3},
                                             {3, 1, 0.001},
                                             {1, 2, 3, 4, 5.5},
                                             {1e-6, 1},
                                             {1, 1e-6},
                                             {1.0 / 3, 1.0 / 3, 1.0 / 3}}) {
    std::vector<SampleOrder::Part> parts;
    double sum = 0;
    for (const double weight : weights) {
      parts.push_back({10 + 7 * static_cast<int64_t>(parts.size()), weight});
      sum += weight;
    }
    const SampleOrder order(parts, 1);
    std::vector<int64_t> count(parts.size());
    std::vector<Samples> drawn(parts.size());
    for (int64_t i = 0; i < 20'000; ++i) {
      int64_t sample = order(i);
      size_t p = 0;
      while (sample >= parts[p].samples) sample -= parts[p++].samples;
      ++count[p];
      drawn[p].push_back(sample);
      // The whole way, not only in the end.
      for (size_t q = 0; q < parts.size(); ++q)
        ASSERT_LE(std::abs(count[q] - (i + 1.0) * weights[q] / sum), static_cast<double>(parts.size()));
    }
    for (size_t p = 0; p < parts.size(); ++p)  // and each part by itself goes through whole epochs
      for (int64_t at = 0; at + parts[p].samples <= count[p]; at += parts[p].samples) {
        Samples epoch(drawn[p].begin() + at, drawn[p].begin() + at + parts[p].samples);
        std::sort(epoch.begin(), epoch.end());
        for (int64_t k = 0; k < parts[p].samples; ++k) ASSERT_EQ(epoch[k], k);
      }
  }
}

TEST(Order, AStepIsAPieceOfTheOrder) {
  const SampleOrder order({{50, 2}, {30, 1}}, 9);
  const Samples run = first(order, 7 * 12);
  for (int64_t step = 0; step < 12; ++step)
    EXPECT_EQ(order.step(step, 7), Samples(run.begin() + 7 * step, run.begin() + 7 * step + 7));
}

// The order is part of what a checkpoint relies on: these numbers must never change.
TEST(Order, IsTheSameOnEveryMachine) {
  EXPECT_EQ(first(SampleOrder({{10, 1}}, 1), 10), (Samples{6, 0, 9, 5, 3, 7, 4, 8, 1, 2}));
  EXPECT_EQ(first(SampleOrder({{1000, 3}, {100, 1}}, 42), 8),
            (Samples{101, 738, 1028, 979, 475, 149, 1005, 730}));
}

TEST(OrderHash, IsTheChainOfTheContract) {
  OrderHash hash;
  EXPECT_EQ(hash.hex(), std::string(32, '0'));
  const Samples step = {5, 1, int64_t{1} << 40};
  hash.update(step);
  const std::string buffer = std::string(16, '\0') + bytes_of(step);
  XXH128_canonical_t digest;
  XXH128_canonicalFromHash(&digest, XXH3_128bits(buffer.data(), buffer.size()));
  std::string expected;
  for (const unsigned char byte : digest.digest) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", byte);
    expected += digits;
  }
  EXPECT_EQ(hash.hex(), expected);
}

TEST(OrderHash, GoesOnFromACheckpointAndSeesTheOrder) {
  const SampleOrder order({{100, 1}}, 3);
  OrderHash whole, half;
  for (int64_t step = 0; step < 10; ++step) whole.update(order.step(step, 4));
  for (int64_t step = 0; step < 6; ++step) half.update(order.step(step, 4));
  OrderHash resumed(half.hex());
  for (int64_t step = 6; step < 10; ++step) resumed.update(order.step(step, 4));
  EXPECT_EQ(resumed.hex(), whole.hex());

  OrderHash swapped, cut;
  swapped.update(Samples{2, 1});
  cut.update(Samples{1});
  cut.update(Samples{2});
  OrderHash straight;
  straight.update(Samples{1, 2});
  EXPECT_NE(straight.hex(), swapped.hex());
  EXPECT_NE(straight.hex(), cut.hex());
}

TEST(OrderHash, RefusesWhatIsNoHash) {
  for (const std::string& bad :
       {std::string("abc"), std::string(), std::string(32, 'g'), std::string(31, '0'), std::string(33, '0')})
    EXPECT_EQ(error_of([&] { OrderHash hash(bad); }).code, Exit::data) << bad;
}

}  // namespace
}  // namespace weft
