#include "autograd/ops/top_k.h"

#include <algorithm>

#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

Function largest(int64_t k) {
  return [=](const std::vector<Variable>& v) { return std::vector{top_k(v[0], k).values}; };
}
std::vector<Variable> gathered(const std::vector<Variable>& v) { return {gather_last(v[0], v[1])}; }

TEST(TopK, OrderTiesAndNaN) {
  const TopK t = top_k(from_values({2, 5}, Dtype::f32, {3, 9, 3, 9, -1, NAN, 2, INFINITY, 2, 2}), 3);
  EXPECT_EQ(to_values(t.indices), (std::vector<double>{1, 3, 0, 0, 2, 1}));
  EXPECT_EQ(to_values(t.values)[2], 3);
  EXPECT_EQ(top_k(random_tensor({3, 4}, 1), 0).values.shape(), (Shape{3, 0}));
  EXPECT_THROW(top_k(random_tensor({3, 4}, 1), 5), Error);
}

TEST(TopK, AgainstASort) {
  const int64_t rows = 4, m = 50, k = 13;
  const Tensor x = random_tensor({rows, m}, 1);
  const std::vector<double> a = to_values(x), y = to_values(top_k(x, k).values);
  for (int64_t i = 0; i < rows; ++i) {
    std::vector<double> row(a.begin() + i * m, a.begin() + (i + 1) * m);
    std::sort(row.begin(), row.end(), std::greater<>());
    for (int64_t j = 0; j < k; ++j) EXPECT_EQ(y[i * k + j], row[j]);
  }
}

TEST(TopK, RunningEqualsSortingAgain) {
  const int64_t rows = 3, k = 4, rest = 5, steps = 20, m = k + rest + steps;
  for (const double rounding : {0.0, 2.0}) {  // the second with many ties
    std::vector<double> x = to_values(random_tensor({rows, m}, 1));
    for (double& v : x)
      if (rounding > 0) v = std::round(v * rounding);
    const std::vector<double> got = to_values(running_top_k(from_values({rows, m}, Dtype::f64, x), k, rest));
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t c = 0; c < steps; ++c) {
        const auto best = [&](std::vector<int64_t>& of) {
          std::stable_sort(of.begin(), of.end(), [&](int64_t p, int64_t q) {
            return std::pair(-x[i * m + p], p) < std::pair(-x[i * m + q], q);
          });
        };
        std::vector<int64_t> first, other;
        for (int64_t j = 0; j <= k + rest + c; ++j) (j < k || j >= k + rest ? first : other).push_back(j);
        best(first);
        other.insert(other.end(), first.begin() + k, first.end());
        best(other);
        for (int64_t j = 0; j < k + rest; ++j)
          EXPECT_EQ(got[(i * steps + c) * (k + rest) + j], j < k ? first[j] : other[j - k]) << c << " " << j;
      }
  }
  EXPECT_EQ(running_top_k(empty({2, 8}, Dtype::f32, Device::meta), 3, 1).shape(), (Shape{2, 4, 4}));
  EXPECT_THROW(running_top_k(random_tensor({2, 8}, 1), 4, 5), Error);
}

TEST(TopK, MarksNameTheChosen) {
  const Tensor m = marks(from_ints({2, 0, 1, 2}).reshape({2, 2}), 3, Dtype::f32);
  EXPECT_EQ(to_values(m), (std::vector<double>{1, 0, 1, 0, 1, 1}));
}

TEST(TopK, Gradients) {
  expect_op(largest(2), {random_tensor({4, 7}, 1)});
  expect_op(largest(3), {random_tensor({2, 3, 5}, 1)});
  expect_op(largest(1), {random_tensor({1, 1}, 1)});
  expect_op(largest(2), {random_tensor({0, 4}, 1)});
  expect_same_bits_on_threads(largest(5), {random_tensor({300, 64}, 1)});
}

TEST(GatherLast, RepeatsAddUpAndBadIndicesAreRefused) {
  const Tensor x = random_tensor({2, 3}, 1), indices = from_ints({2, 2, 0, 1}).reshape({2, 2});
  const std::vector<double> a = to_values(x);
  EXPECT_EQ(to_values(gather_last(x, indices)), (std::vector<double>{a[2], a[2], a[3], a[4]}));
  expect_op(gathered, {x, indices});
  for (const int32_t bad : {3, -1})
    EXPECT_THROW(gather_last(on_cpu({2, 3}), from_ints({0, bad}, Device::cpu).reshape({2, 1})), Error);
  EXPECT_THROW(gather_last(x, from_ints({0, 1, 2}).reshape({3, 1})), Error);
}

}  // namespace
}  // namespace weft
