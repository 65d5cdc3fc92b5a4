#include "autograd/ops/rotary.h"

#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/sample.h"
#ifdef WEFT_CUDA
#include "autograd/cuda/replay.h"
#endif
#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

// In long double, one angle at a time.
Tensor definition(const Tensor& x, const std::vector<int32_t>& position, double theta, int64_t rotated) {
  const int64_t n = x.dim(0), heads = x.dim(1), width = x.dim(2), half = rotated / 2;
  std::vector<double> a = to_values(x), y = a;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t j = 0; j < half; ++j) {
        const long double angle =
            position[i] * std::pow(static_cast<long double>(theta), -2.0L * j / rotated);
        const int64_t first = (i * heads + h) * width + j, second = first + half;
        y[first] = static_cast<double>(a[first] * std::cos(angle) - a[second] * std::sin(angle));
        y[second] = static_cast<double>(a[second] * std::cos(angle) + a[first] * std::sin(angle));
      }
  return from_values(x.shape(), Dtype::f64, y);
}

Function turned(double theta, int64_t rotated) {
  return [=](const std::vector<Variable>& v) { return std::vector{rotary(v[0], v[1], theta, rotated)}; };
}

TEST(Rotary, AgainstTheDefinitionAtAnyPosition) {
  const std::vector<int32_t> position{0, 1, 63, 64, 65, 0, 5000, 1000000, 999999, 1 << 30};
  const Tensor x = random_tensor({10, 3, 14}, 1);
  for (const int64_t rotated : {14, 6, 2}) {
    const Tensor exact = definition(x, position, 500000, rotated);
    EXPECT_LE(difference(rotary(x, from_ints(position), 500000, rotated), exact), 1e-6);
    const Tensor single = x.to(Dtype::f32);
    EXPECT_LE(difference(rotary(single, from_ints(position), 500000, rotated),
                         definition(single, position, 500000, rotated)),
              1e-6);
    // 2^30 radians leave ten digits in f64; a million leaves all that matter.
    EXPECT_LE(
        difference(rotary(x.rows(0, 9), from_ints(position).rows(0, 9), 500000, rotated), exact.rows(0, 9)),
        1e-9);
  }
}

TEST(Rotary, Gradients) {
  const Tensor position = from_ints({7, 0, 130, 3});
  for (const int64_t rotated : {0, 2, 8})
    expect_op(turned(100, rotated), {random_tensor({4, 3, 8}, 1), position});
  expect_op(turned(100, 0), {random_tensor({1, 1, 2}, 1), from_ints({5})});
  expect_op(turned(100, 0), {random_tensor({0, 2, 4}, 1), from_ints({})});
  expect_same_bits_on_threads(turned(1e4, 0), {random_tensor({500, 3, 34}, 2), random_ints(500, 100000, 3)});
}

// Queries, fewer keys and values of another width, of one projection: as each by itself.
TEST(Rotary, SeveralAtOnce) {
  const Tensor position = random_ints(37, 5000, 1);
  const auto parts = [](const std::vector<Variable>& u) {
    return split_columns(u[0], {Shape{37, 3, 16}, Shape{37, 1, 16}, Shape{37, 1, 24}});
  };
  const Function together = [&](const std::vector<Variable>& u) {
    const auto p = parts(u);
    const auto y = rotary({p[0], p[1]}, position, 100, 8);
    return std::vector{y[0], y[1], p[2]};
  };
  const Function apart = [&](const std::vector<Variable>& u) {
    const auto p = parts(u);
    return std::vector{rotary(p[0], position, 100, 8), rotary(p[1], position, 100, 8), p[2]};
  };
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
    const Tensor packed = random_tensor({37, 88}, 2, dtype);
    const auto a = outputs_and_gradients(together, {packed}), b = outputs_and_gradients(apart, {packed});
    for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(same_bits(a[i], b[i])) << name_of(dtype) << i;
  }
  expect_op(together, {random_tensor({37, 88}, 2)});
  const Tensor x = random_tensor({37, 2, 6}, 3);  // more than one launch takes
  const auto many = rotary({x, x, x, x, x, x, x}, position);
  EXPECT_TRUE(same_bits(many[6], rotary(x, position)));
}

// Written over what was read, the numbers and the gradients are those of tensors apart: where a kernel wrote
// the gradient among those of other columns, where it is nobody else's, and where it is somebody else's.
TEST(Rotary, InPlace) {
  const Tensor position = random_ints(37, 5000, 1);
  const auto parts = [](const std::vector<Variable>& u) {
    return split_columns(scale(u[0], 2), {Shape{37, 3, 16}, Shape{37, 1, 16}, Shape{37, 1, 24}});
  };
  const auto read = [&](const Variable& q, const Variable& k, const Variable& again) {
    return std::vector{scale(q, 5), rotary(k, position, 100), again};
  };
  for (const int64_t rotated : {16, 8, 0}) {
    const Function in_place = [&](const std::vector<Variable>& u) {
      const auto p = parts(u);
      const Variable own = scale(p[1], 7), before = scale(p[0], 3);  // reads x, not y
      rotary_in_place({p[0], p[1], own}, position, 100, rotated);
      auto y = read(p[0], p[1], own);
      y.insert(y.end(), {before, p[2]});
      return y;
    };
    const Function apart = [&](const std::vector<Variable>& u) {
      const auto p = parts(u);
      const Variable own = scale(p[1], 7), before = scale(p[0], 3);
      const auto t = rotary({p[0], p[1], own}, position, 100, rotated);
      auto y = read(t[0], t[1], t[2]);
      y.insert(y.end(), {before, p[2]});
      return y;
    };
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
      const Tensor packed = random_tensor({37, 88}, 2, dtype);
      const auto a = outputs_and_gradients(in_place, {packed}), b = outputs_and_gradients(apart, {packed});
      for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(same_bits(a[i], b[i])) << name_of(dtype) << i;
    }
    expect_gradients(in_place, {random_tensor({37, 88}, 2)});
    expect_meta_shapes(in_place, {random_tensor({37, 88}, 2)});
  }
  expect_same_bits_on_threads(
      [&](const std::vector<Variable>& u) {
        const auto p = parts(u);
        rotary_in_place({p[0]}, position);
        return p;
      },
      {random_tensor({37, 88}, 4)});
}

TEST(Rotary, InPlaceWithoutATape) {
  const Tensor position = from_ints({3, 0, 77}), x = random_tensor({3, 2, 8}, 1), y = rotary(x, position);
  rotary_in_place({x}, position);
  EXPECT_TRUE(same_bits(x, y));
}

TEST(Rotary, ScoresDependOnTheDistanceAlone) {
  const Tensor q = random_tensor({1, 1, 16}, 1), k = random_tensor({1, 1, 16}, 2);
  const auto score = [&](int32_t m, int32_t n) {
    const std::vector<double> a = to_values(rotary(q, from_ints({m}))),
                              b = to_values(rotary(k, from_ints({n})));
    double dot = 0;
    for (size_t i = 0; i < a.size(); ++i) dot += a[i] * b[i];
    return dot;
  };
  EXPECT_NEAR(score(20, 3), score(100020, 100003), 1e-9);
}

TEST(Rotary, ColumnViewsAndBadArguments) {
  const Tensor wide = random_tensor({6, 20}, 1), view = wide.columns(4, 16).reshape({6, 2, 6});
  const Tensor position = from_ints({0, 1, 2, 3, 4, 5});
  EXPECT_TRUE(same_bits(rotary(view, position), rotary(view.contiguous(), position)));
  EXPECT_THROW(rotary(view, position, 10000, 3), Error);
  EXPECT_THROW(rotary(view, position, 10000, 8), Error);
  EXPECT_THROW(rotary(view, from_ints({1})), Error);
}

#ifdef WEFT_CUDA
// Positions are read before the kernel before has ended, but not if it is that kernel which says them.
TEST(Rotary, WaitsForPositionsOfItsOwnRecording) {
  if (default_device() != Device::cuda) GTEST_SKIP() << "for a GPU";
  const Tensor logits = zeros({1, 1 << 22}, Dtype::f32);  // a millisecond for one block
  const Tensor x = random_tensor({1, 1, 64}, 1, Dtype::f32), zero = from_ints({0});
  Tensor y;
  cuda::Replay replay;
  replay.record([&] { y = rotary(x, sample_rows(logits, zero, {.temperature = 0})).value(); });
  for (const int32_t at : {3, 1000, 77}) {
    logits.zero();
    logits.columns(at, at + 1).copy_from(full({1, 1}, 1, Dtype::f32));
    replay.run();
    EXPECT_TRUE(same_bits(y, rotary(x, from_ints({at})).value())) << at;
  }
}
#endif

}  // namespace
}  // namespace weft
