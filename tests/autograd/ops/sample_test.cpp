// Draws from logits: against the definition on the host, and by their frequencies.

#include "autograd/ops/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "autograd/gradcheck.h"
#include "autograd/philox.h"
#include "tests/few.h"

namespace weft {
namespace {

Tensor logits_of(int64_t rows, int64_t n, uint32_t seed) {
  return random_tensor({rows, n}, seed, Dtype::f32, 2);
}

std::vector<int32_t> drawn(const Tensor& logits, const std::vector<int32_t>& index,
                           const DrawOptions& draws) {
  const Tensor y = sample_rows(logits, from_ints(index), draws).to(Device::cpu);
  return {y.data<int32_t>(), y.data<int32_t>() + y.numel()};
}

// Sorted whole, cut, and walked from the largest down; where all may be drawn, in the order of the row.
int32_t expected(const Tensor& logits, int64_t row, int32_t index, const DrawOptions& d) {
  const int64_t n = logits.dim(1);
  std::vector<double> z = to_values(logits);
  z = {z.begin() + row * n, z.begin() + (row + 1) * n};
  std::vector<int32_t> order;
  for (int32_t i = 0; i < n; ++i) order.push_back(i);
  if ((d.top_k > 0 && d.top_k < n) || d.top_p < 1 || d.temperature == 0)
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return z[a] > z[b]; });
  if (d.temperature == 0) return order[0];
  if (d.top_k > 0) order.resize(static_cast<size_t>(std::min(n, d.top_k)));
  const double top = *std::max_element(z.begin(), z.end());
  double total = 0, kept = 0;
  for (const int32_t i : order) total += std::exp((z[i] - top) / d.temperature);
  if (d.top_p < 1) {
    size_t count = 0;
    while (kept < d.top_p * total) kept += std::exp((z[order[count++]] - top) / d.temperature);
    order.resize(count);
    total = kept;
  }
  double left = total * RandomKey{d.seed, d.stream, 0}.uniform(static_cast<uint64_t>(index));
  for (const int32_t i : order)
    if ((left -= std::exp((z[i] - top) / d.temperature)) <= 0) return i;
  return order.back();
}

TEST(Sample, IsTheDefinition) {
  for (const int64_t n : {1, 2, 31, 1000, 5003})
    for (const double temperature : {0.0, 0.3, 1.0})
      for (const int64_t top_k : {0, 1, 2, 50, 900, 1100}) {
        if (few() && (n % 1000 == 0 || temperature == 0.3 || top_k % 50 != 0)) continue;
        SCOPED_TRACE(text(n, " logits, temperature ", temperature, ", top_k ", top_k));
        const Tensor logits = logits_of(7, n, 3);
        const std::vector<int32_t> index{0, 1, 2, 900, 4, 5, 5};
        const DrawOptions d{temperature, top_k, 1, 17, 5};
        const std::vector<int32_t> y = drawn(logits, index, d);
        for (size_t i = 0; i < y.size(); ++i)
          EXPECT_EQ(y[i], expected(logits, static_cast<int64_t>(i), index[i], d)) << "row " << i;
      }
}

TEST(Sample, OfEqualLogitsTheFirst) {
  std::vector<double> z(3000, 1.0);
  z[0] = -1, z[10] = z[2000] = 5, z[77] = 0, z[2999] = -0.0;
  const Tensor logits = from_values({1, 3000}, Dtype::f32, z);
  EXPECT_EQ(drawn(logits, {0}, {.temperature = 0}), std::vector<int32_t>{10});
  for (int32_t i = 0; i < (few() ? 2 : 40); ++i) {
    const DrawOptions d{.temperature = 50, .top_k = 6};
    const int32_t y = drawn(logits, {i}, d)[0];
    EXPECT_EQ(y, expected(logits, 0, i, d));
    EXPECT_TRUE(y == 10 || y == 2000 || (y >= 1 && y <= 4)) << y;
  }
}

std::vector<std::pair<std::string, std::vector<double>>> rows_of(int64_t n) {
  std::vector<double> random = to_values(logits_of(1, n, 4)), peaked = random, far = random,
                      tied(static_cast<size_t>(n)), masked = random;
  peaked[n / 2] = 30;
  for (double& z : far) z = 1000 + z / 64;  // of one first digit
  for (int64_t i = 0; i < n; ++i) tied[i] = std::round(random[i]) * (i % 3 == 0 ? -0.0 : 1.0);
  for (int64_t i = 0; i < n; i += 2) masked[i] = -INFINITY;
  masked[n - 1] = random[n - 1];
  return {{"random", random},
          {"peaked", peaked},
          {"far", far},
          {"tied", tied},
          {"flat", std::vector<double>(static_cast<size_t>(n), -0.5)},
          {"masked", masked}};
}

TEST(Sample, TopPIsTheDefinition) {
  for (const int64_t n : {1, 2, 31, 1000, 5003, 50257})
    for (const auto& [name, z] : rows_of(n)) {
      const Tensor logits = from_values({1, n}, Dtype::f32, z);
      for (const double top_p : {1e-12, 0.01, 0.3, 0.5, 0.9, 0.999})
        for (const int64_t top_k : {0, 1, 50, 1024})
          for (const double temperature : {0.0, 0.1, 1.0, 20.0}) {
            if (few() && (n % 1000 == 3 || n > 6000 || temperature < 1 || top_p < 0.5 || top_k > 50))
              continue;
            if (n > 6000 && (temperature < 1 || top_k % 50 != 0 || top_p == 0.3)) continue;
            const DrawOptions d{temperature, top_k, top_p, 17, 5};
            for (const int32_t index : {0, 77})
              EXPECT_EQ(drawn(logits, {index}, d)[0], expected(logits, 0, index, d))
                  << name << ", " << n << " logits, top_p " << top_p << ", top_k " << top_k
                  << ", temperature " << temperature << ", number " << index;
          }
    }
}

// That a share was cut off shows in what many draws take: all that is kept, and nothing else.
TEST(Sample, TopPKeepsTheFewest) {
  // Weights 8, 4, 4, 2, 1, 1 of 20.
  const std::vector<double> z{std::log(4), 0, std::log(8), std::log(4), 0, std::log(2)};
  const auto seen = [&](double top_p, int64_t top_k) {
    std::vector<int32_t> index;
    std::vector<double> all;
    for (int32_t i = 0; i < 400; ++i) {
      index.push_back(i);
      all.insert(all.end(), z.begin(), z.end());
    }
    std::string tokens;
    const std::vector<int32_t> y =
        drawn(from_values({400, 6}, Dtype::f32, all), index, {.top_k = top_k, .top_p = top_p});
    for (int32_t i = 0; i < 6; ++i)
      if (std::find(y.begin(), y.end(), i) != y.end()) tokens += std::to_string(i);
    return tokens;
  };
  EXPECT_EQ(seen(1e-300, 0), "2");
  EXPECT_EQ(seen(0.39, 0), "2");
  EXPECT_EQ(seen(0.41, 0), "02");
  EXPECT_EQ(seen(0.61, 0), "023");
  EXPECT_EQ(seen(0.81, 0), "0235");
  EXPECT_EQ(seen(0.91, 0), "01235");
  EXPECT_EQ(seen(0.96, 0), "012345");
  EXPECT_EQ(seen(1, 0), "012345");
  EXPECT_EQ(seen(0.66, 2), "2") << "of 12";
  EXPECT_EQ(seen(0.67, 2), "02");
  EXPECT_EQ(seen(0.74, 3), "02") << "of 16";
  EXPECT_EQ(seen(0.76, 3), "023");
  EXPECT_EQ(seen(0.81, 9), "0235");
}

TEST(Sample, OfRowsThatAreNotFiniteSomeToken) {
  for (const double wrong : {double{NAN}, double{INFINITY}, -double{INFINITY}})
    for (const bool all : {false, true}) {
      std::vector<double> z = to_values(logits_of(1, 3001, 4));
      for (size_t i = 0; i < z.size(); i += all ? 1 : 100) z[i] = wrong;
      const Tensor logits = from_values({1, 3001}, Dtype::f32, z);
      for (const DrawOptions& d :
           {DrawOptions{}, {.top_k = 5}, {.top_p = 0.5}, {.top_k = 5, .top_p = 0.5}, {.temperature = 0}})
        for (int32_t index = 0; index < 3; ++index) {
          const int32_t y = drawn(logits, {index}, d)[0];
          EXPECT_TRUE(y >= 0 && y < 3001)
              << wrong << ", top_k " << d.top_k << ", top_p " << d.top_p << ": " << y;
        }
    }
}

TEST(Sample, FrequenciesAreTheProbabilities) {
  const int64_t n = 5, draws = 20000;
  const Tensor one = logits_of(1, n, 8);
  std::vector<double> z = to_values(one), all;
  std::vector<int32_t> index;
  for (int32_t i = 0; i < draws; ++i) {
    index.push_back(i);
    all.insert(all.end(), z.begin(), z.end());
  }
  std::vector<double> seen(n), p(n);
  for (const int32_t y : drawn(from_values({draws, n}, Dtype::f32, all), index, {.temperature = 2}))
    seen[static_cast<size_t>(y)] += 1.0 / static_cast<double>(draws);
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += p[i] = std::exp(z[i] / 2);
  for (int64_t i = 0; i < n; ++i) EXPECT_NEAR(seen[i], p[i] / total, 4 * 0.5 / std::sqrt(draws)) << i;
}

TEST(Sample, ViewsAndOtherRows) {
  const Tensor logits = logits_of(4, 100, 2), few = logits.columns(0, 60);
  for (const DrawOptions& d :
       {DrawOptions{.temperature = 1, .top_k = 5}, {.temperature = 1}, {.temperature = 0}, {.top_p = 0.8}}) {
    const std::vector<int32_t> all = drawn(few, {3, 3, 3, 3}, d);
    for (int64_t i = 0; i < 4; ++i)
      EXPECT_EQ(drawn(few.rows(i, i + 1).contiguous(), {3}, d)[0], all[i]) << "alone, row " << i;
    EXPECT_LT(*std::max_element(all.begin(), all.end()), 60);
  }
  EXPECT_THROW(sample_rows(logits, from_ints({1}), {}), Error);
  for (const double top_p : {-0.5, 0.0, 1.5, double{NAN}})
    EXPECT_THROW(sample_rows(logits, from_ints({1, 1, 1, 1}), {.top_p = top_p}), Error);
  const Tensor count = from_ints({1, 2}), position = from_ints({7, 0});
  increment(count, position);
  EXPECT_EQ(to_values(count), (std::vector<double>{2, 3}));
  EXPECT_EQ(to_values(position), (std::vector<double>{8, 1}));
}

}  // namespace
}  // namespace weft
