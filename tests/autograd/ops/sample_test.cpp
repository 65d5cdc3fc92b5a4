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

// Sorted whole, and walked from the largest down; where all may be drawn, in the order of the row.
int32_t expected(const Tensor& logits, int64_t row, int32_t index, const DrawOptions& d) {
  const int64_t n = logits.dim(1);
  std::vector<double> z = to_values(logits);
  z = {z.begin() + row * n, z.begin() + (row + 1) * n};
  std::vector<int32_t> order;
  for (int32_t i = 0; i < n; ++i) order.push_back(i);
  if ((d.top_k > 0 && d.top_k < n) || d.temperature == 0)
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return z[a] > z[b]; });
  if (d.temperature == 0) return order[0];
  if (d.top_k > 0) order.resize(static_cast<size_t>(std::min(n, d.top_k)));
  const double top = *std::max_element(z.begin(), z.end());
  double total = 0;
  for (const int32_t i : order) total += std::exp((z[i] - top) / d.temperature);
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
        const DrawOptions d{temperature, top_k, 17, 5};
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
       {DrawOptions{.temperature = 1, .top_k = 5}, {.temperature = 1}, {.temperature = 0}}) {
    const std::vector<int32_t> all = drawn(few, {3, 3, 3, 3}, d);
    for (int64_t i = 0; i < 4; ++i)
      EXPECT_EQ(drawn(few.rows(i, i + 1).contiguous(), {3}, d)[0], all[i]) << "alone, row " << i;
    EXPECT_LT(*std::max_element(all.begin(), all.end()), 60);
  }
  EXPECT_THROW(sample_rows(logits, from_ints({1}), {}), Error);
  const Tensor count = from_ints({1, 2}), position = from_ints({7, 0});
  increment(count, position);
  EXPECT_EQ(to_values(count), (std::vector<double>{2, 3}));
  EXPECT_EQ(to_values(position), (std::vector<double>{8, 1}));
}

}  // namespace
}  // namespace weft
