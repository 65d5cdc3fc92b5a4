#include "autograd/ops/reduce.h"

#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

TEST(Reduce, EveryAxisAgainstLoops) {
  const int64_t extent[] = {3, 4, 5};
  const Tensor x = random_tensor({3, 4, 5}, 1);
  const std::vector<double> a = to_values(x);
  for (int axis = 0; axis < 3; ++axis) {
    std::vector<double> total(60 / extent[axis]), largest(60 / extent[axis], -INFINITY);
    int64_t inner = 1;
    for (int d = axis + 1; d < 3; ++d) inner *= extent[d];
    for (int64_t i = 0; i < 60; ++i) {
      const int64_t place = i / (inner * extent[axis]) * inner + i % inner;
      total[place] += a[i];
      largest[place] = std::max(largest[place], a[i]);
    }
    const Shape reduced = axis == 0 ? Shape{4, 5} : axis == 1 ? Shape{3, 5} : Shape{3, 4};
    const Tensor expected = from_values(reduced, Dtype::f64, total);
    EXPECT_LE(difference(sum(x, axis), expected), 1e-14);
    EXPECT_LE(difference(sum(x, axis - 3), expected), 1e-14);
    EXPECT_LE(difference(mean(x, axis, true).value().reshape(reduced).contiguous(),
                         from_values(reduced, Dtype::f64,
                                     [&] {
                                       std::vector<double> m = total;
                                       for (double& v : m) v /= static_cast<double>(extent[axis]);
                                       return m;
                                     }())),
              1e-14);
    EXPECT_EQ(to_values(max(x, axis)), largest);
    EXPECT_EQ(max(x, axis, true).shape(), x.shape().with(axis, 1));
    for (const bool keep : {false, true})
      expect_op(
          [=](const std::vector<Variable>& v) {
            return std::vector{sum(v[0], axis, keep), mean(v[0], axis, keep), max(v[0], axis, keep)};
          },
          {x});
  }
}

TEST(Reduce, OddShapes) {
  const auto all = [](const std::vector<Variable>& v) {
    return std::vector{sum(v[0], -1), mean(v[0], -1), max(v[0], -1)};
  };
  expect_op(all, {random_tensor({1}, 1)});
  expect_op(all, {random_tensor({6}, 1)});
  expect_op(all, {random_tensor({0, 3}, 1)});
  EXPECT_EQ(to_values(sum(random_tensor({2, 0}, 1), 1)), (std::vector<double>{0, 0}));
  EXPECT_THROW(mean(random_tensor({2, 0}, 1), 1), Error);
  EXPECT_THROW(max(random_tensor({2, 0}, 1), 1), Error);
  EXPECT_THROW(sum(random_tensor({2, 2}, 1), 2), Error);
  const Tensor wide = random_tensor({5, 9}, 2);
  EXPECT_TRUE(same_bits(sum(wide.columns(2, 6), 0), sum(wide.columns(2, 6).contiguous(), 0)));
}

TEST(Reduce, SameBitsOnThreads) {
  for (const int axis : {0, 1, 2})
    expect_same_bits_on_threads(
        [=](const std::vector<Variable>& v) {
          return std::vector{sum(v[0], axis), mean(v[0], axis), max(v[0], axis)};
        },
        {random_tensor({axis == 0 ? 1 : 70, 17, 257}, 1)});
  expect_same_bits_on_threads([](const std::vector<Variable>& v) { return std::vector{sum(v[0], 0)}; },
                              {random_tensor({200, 517}, 1)});
}

TEST(Reduce, TheFirstMaximumTakesTheGradientAndNaNIsSeen) {
  Tape tape;
  const Variable x = tape.input(from_values({2, 3}, Dtype::f32, {1, 7, 7, 2, NAN, 5}));
  const Variable y = max(x, 1);
  tape.backward(y, from_values({2}, Dtype::f32, {3, 4}));
  EXPECT_EQ(to_values(y)[0], 7);
  EXPECT_TRUE(std::isnan(to_values(y)[1]));
  EXPECT_EQ(to_values(tape.gradient(x)), (std::vector<double>{0, 3, 0, 0, 4, 0}));
}

// A running f32 sum of 2^25 ones would stop at 2^24.
TEST(Reduce, LongSumsAreExact) {
  const Tensor ones = full({(int64_t{1} << 24) + 8, 2}, 1, Dtype::bf16);
  EXPECT_EQ(to_values(mean(ones, 0)), (std::vector<double>{1, 1}));
}

}  // namespace
}  // namespace weft
