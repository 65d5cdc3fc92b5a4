#include "autograd/ops/arrange.h"

#include <algorithm>
#include <numeric>

#include "autograd/layout.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/rotary.h"
#include "autograd/ops/triangle.h"
#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

Tensor counting(const Shape& shape, Dtype dtype = Dtype::f64) {
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  std::iota(values.begin(), values.end(), 0.0);
  return from_values(shape, dtype, values);
}

TEST(Arrange, PermuteEveryOrder) {
  for (const Shape& shape : {Shape{2, 3, 4}, {35, 3, 70}, {1, 40, 33}})
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
      const Tensor x = counting(shape).to(dtype);
      const std::vector<double> v = to_values(x);
      std::vector<int> order{0, 1, 2};
      do {
        const std::vector<double> w = to_values(permute(x, order));
        int64_t i = 0, wrong = 0;
        std::vector<int64_t> at(3);
        for (at[order[0]] = 0; at[order[0]] < x.dim(order[0]); ++at[order[0]])
          for (at[order[1]] = 0; at[order[1]] < x.dim(order[1]); ++at[order[1]])
            for (at[order[2]] = 0; at[order[2]] < x.dim(order[2]); ++at[order[2]])
              wrong += w[i++] != v[(at[0] * x.dim(1) + at[1]) * x.dim(2) + at[2]];
        EXPECT_EQ(wrong, 0) << name_of(dtype) << " " << order[0] << order[1] << order[2];
      } while (std::next_permutation(order.begin(), order.end()));
    }
  const std::vector<double> turned =
      to_values(permute(from_ints({1, 2, 3, 4, 5, 6}).reshape({2, 3}), {1, 0}));
  EXPECT_EQ(turned, (std::vector<double>{1, 4, 2, 5, 3, 6}));
  std::vector<int> order{0, 1, 2};
  do
    expect_gradients([&](const std::vector<Variable>& u) { return std::vector{permute(u[0], order)}; },
                     {random_tensor({2, 3, 4}, 1)});
  while (std::next_permutation(order.begin(), order.end()));
}

TEST(Arrange, SliceAndConcatenateAreInverse) {
  const Tensor x = random_tensor({3, 4, 5}, 1, Dtype::bf16);
  for (const int axis : {0, 1, -1}) {
    const int64_t n = x.dim(axis);
    EXPECT_TRUE(same_bits(
        concatenate({slice(x, axis, 0, 1), slice(x, axis, 1, n), slice(x, axis, n, n)}, axis).value(), x));
    expect_gradients(
        [&](const std::vector<Variable>& u) {
          return std::vector{concatenate({slice(u[0], axis, 1, 3), u[1], slice(u[0], axis, 0, 2)}, axis)};
        },
        {random_tensor({3, 4, 5}, 1), random_tensor(x.shape().with(axis, 2), 2)});
  }
  EXPECT_THROW(slice(x, 1, 2, 5), Error);
  EXPECT_THROW(concatenate({random_tensor({2, 2}, 1), random_tensor({2, 3}, 1)}, 0), Error);
}

TEST(Arrange, SplitColumnsGathersOneGradient) {
  const auto f = [](const std::vector<Variable>& u) {
    const auto parts = split_columns(u[0], {2, 1, 4});
    return std::vector{parts[2], reshape(parts[0], {3, 2, 1})};  // the middle one is unused
  };
  expect_gradients(f, {random_tensor({3, 7}, 1)});
  EXPECT_FALSE(split_columns(random_tensor({3, 7}, 1), {3, 4})[0].value().dense());
}

// Parts as heads; one used twice, one through an op that writes where its gradient lies (rotary), one not.
TEST(Arrange, SplitColumnsIntoHeads) {
  const Tensor position = from_ints({4, 0, 9});
  const auto f = [&](const std::vector<Variable>& u) {
    const auto parts = split_columns(u[0], {Shape{3, 2, 4}, Shape{3, 1, 4}, Shape{3, 5}});
    EXPECT_EQ(parts[1].shape(), (Shape{3, 1, 4}));
    return std::vector{rotary(parts[0], position), parts[1], scale(parts[0], 3), square(parts[2])};
  };
  expect_op(f, {random_tensor({3, 17}, 1)});
  EXPECT_THROW(split_columns(random_tensor({3, 7}, 1), {Shape{3, 3}, Shape{4, 4}}), Error);
}

TEST(Arrange, SplitRowsGathersOneGradient) {
  const auto f = [](const std::vector<Variable>& u) {
    const auto parts = split_rows(u[0], 3);  // the middle one is unused
    return std::vector{square(parts[2]), reshape(parts[0], {4, 2}), scale(parts[0], 3)};
  };
  expect_op(f, {random_tensor({6, 4}, 1)});
  EXPECT_THROW(split_rows(random_tensor({4, 2}, 1), 3), Error);
}

// What is written where its gradient lies is passed on without a copy, and alone.
TEST(Arrange, JoinedGradientsAreNotCopied) {
  Tape tape;
  const Variable x = tape.input(random_tensor({6, 8}, 1));
  const auto parts = split_columns(x, {Shape{6, 1, 4}, Shape{6, 1, 4}});
  const auto y = rotary(parts, from_ints({0, 1, 2, 3, 4, 5}));
  const Tensor seed = random_tensor({6, 1, 4}, 2);
  const int64_t before = memory_report(default_device()).bytes;
  reset_peak(default_device());
  tape.backward(y, {seed, seed});
  EXPECT_LE(memory_report(default_device()).peak_bytes - before, 6 * 8 * 8 + 1024);
  EXPECT_TRUE(tape.gradient(x).dense());
}

TEST(Arrange, GatherRowsWithRepeatsAndBlanks) {
  const Tensor index = from_ints({2, -1, 0, 2});
  const Tensor y = gather_rows(counting({3, 2}), index, 7).value();
  EXPECT_EQ(to_values(y), (std::vector<double>{4, 5, 7, 7, 0, 1, 4, 5}));
  expect_gradients([&](const std::vector<Variable>& u) { return std::vector{gather_rows(u[0], index)}; },
                   {random_tensor({3, 2, 3}, 1)});
  EXPECT_THROW(gather_rows(on_cpu({3, 2}), from_ints({3}, Device::cpu)), Error);
}

TEST(Triangle, MaskAndCumulativeSum) {
  EXPECT_EQ(to_values(lower_triangle(counting({2, 3}), 0, -1).value()),
            (std::vector<double>{0, -1, -1, 3, 4, -1}));
  EXPECT_EQ(to_values(lower_triangle(counting({2, 3}), -1).value()), (std::vector<double>{0, 0, 0, 3, 0, 0}));
  EXPECT_EQ(to_values(cumulative_sum(counting({2, 3}), 0).value()), (std::vector<double>{0, 1, 2, 3, 5, 7}));
  for (const int axis : {0, 1, 2})
    expect_gradients(
        [&](const std::vector<Variable>& u) {
          return std::vector{cumulative_sum(u[0], axis), lower_triangle(u[0], 1)};
        },
        {random_tensor({2, 3, 4}, 1)});
}

TEST(Triangle, SolveUnitLower) {
  // (1 0; 2 1) y = (1; 5): y = (1; 3). What is on and above the diagonal is not read.
  const Tensor a = from_values({2, 2}, Dtype::f64, {7, 8, 2, 9}), x = from_values({2, 1}, Dtype::f64, {1, 5});
  EXPECT_EQ(to_values(solve_unit_lower(a, x).value()), (std::vector<double>{1, 3}));
  const Function solve = [](const std::vector<Variable>& u) {
    return std::vector{solve_unit_lower(u[0], u[1])};
  };
  for (const int64_t n : {0, 1, 5})
    expect_op(solve, {random_tensor({2, n, n}, 1, Dtype::f64, 0.4), random_tensor({2, n, 3}, 2)});
  EXPECT_THROW(solve_unit_lower(a, random_tensor({3, 1}, 1)), Error);
}

TEST(Layout, PositionsAndDocuments) {
  const Layout layout = whole_documents({2, 0, 3});
  EXPECT_EQ(to_values(layout.position), (std::vector<double>{0, 1, 0, 1, 2}));
  EXPECT_EQ(to_values(layout.document), (std::vector<double>{0, 0, 2, 2, 2}));
  EXPECT_EQ(layout.segments.size(), 2u);
}

}  // namespace
}  // namespace weft
