#include "autograd/ops/lrpe.h"

#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

Tensor positions(int64_t n, const Variable& like) {
  std::vector<double> t;
  for (int64_t i = 0; i < n; ++i) t.push_back(static_cast<double>(i * i % 97));
  const Dtype wide = wide_of(like.dtype());
  return like.device() == Device::meta ? empty({n}, wide, Device::meta) : from_values({n}, wide, t);
}

// theta last
std::vector<Variable> lrpe_at_once(const std::vector<Variable>& v) {
  return lrpe_features({v.begin(), v.end() - 1}, cast(v.back(), wide_of(v[0].dtype())),
                       positions(v[0].dim(0), v[0]));
}

std::vector<Variable> lrpe_by_basic_ops(const std::vector<Variable>& v) {
  const Dtype wide = wide_of(v[0].dtype());
  const Variable t = cast(reshape(positions(v[0].dim(0), v[0]), {v[0].dim(0), 1, 1}), Dtype::f64);
  const Variable angle = multiply(t, cast(cast(v.back(), wide), Dtype::f64));
  std::vector<Variable> out;
  for (size_t i = 0; i + 1 < v.size(); ++i) {
    const auto turned = [&](const Variable& factor) {
      return cast(multiply(cast(v[i], wide), cast(factor, wide)), v[i].dtype());
    };
    out.push_back(concatenate({turned(cos(angle)), turned(sin(angle))}, 2));
  }
  return out;
}

TEST(Lrpe, Gradients) {
  for (const Shape& shape : {Shape{5, 2, 3}, Shape{3, 1, 8}, Shape{1, 1, 1}, Shape{0, 2, 4}}) {
    const Tensor theta = random_tensor({shape[1], shape[2]}, 3);
    expect_op(lrpe_at_once, {random_tensor(shape, 1), theta});
    expect_op(lrpe_at_once, {random_tensor(shape, 1), random_tensor(shape, 2), theta});
  }
  // Positions too, where they are a state.
  const Function positioned = [](const std::vector<Variable>& v) {
    const Dtype wide = wide_of(v[0].dtype());
    return lrpe_features({v[0], v[1]}, cast(v[2], wide), cast(v[3], wide));
  };
  for (const Shape& at : {Shape{5}, Shape{5, 1}})
    expect_op(positioned, {random_tensor({5, 2, 3}, 1), random_tensor({5, 2, 3}, 2), random_tensor({2, 3}, 3),
                           random_tensor(at, 4)});
  expect_same_bits_on_threads(lrpe_at_once, {random_tensor({301, 3, 10}, 1), random_tensor({301, 3, 10}, 2),
                                             random_tensor({3, 10}, 3)});
}

// Channels by fours and one by one, more tokens than a block of sums has, and more channels than a block.
TEST(Lrpe, AgainstBasicOps) {
  for (const Shape& shape : {Shape{300, 3, 16}, Shape{300, 3, 15}, Shape{70, 6, 128}, Shape{40, 5, 30}}) {
    const std::vector<Tensor> exact{random_tensor(shape, 1), random_tensor(shape, 2),
                                    random_tensor({shape[1], shape[2]}, 3)};
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
      const std::vector<Tensor> x = each_float(exact, [&](const Tensor& t) { return t.to(dtype); });
      const std::vector<Tensor> one = outputs_and_gradients(lrpe_at_once, x),
                                two = outputs_and_gradients(lrpe_by_basic_ops, x);
      for (size_t i = 0; i < 2; ++i)
        EXPECT_LE(difference(one[i], two[i]), 1e-15) << shape << name_of(dtype) << " features " << i;
      for (size_t i = 2; i < two.size(); ++i)
        EXPECT_LE(norm_difference(one[i], two[i]), tolerance::of(dtype)) << shape << name_of(dtype) << i;
    }
  }
}

// Wide features hold what narrow ones do, and take gradients that are wide.
TEST(Lrpe, WideFeaturesEqualNarrowOnes) {
  for (const Shape& shape : {Shape{300, 3, 16}, Shape{301, 3, 15}, Shape{1, 1, 1}, Shape{0, 2, 4}}) {
    const Tensor theta = random_tensor({shape[1], shape[2]}, 3).to(Dtype::f32);
    const auto outcome = [&](bool wide) {
      Tape tape;
      std::vector<Variable> x, all;
      for (const uint32_t i : {1U, 2U}) x.push_back(tape.input(random_tensor(shape, i).to(Dtype::bf16)));
      const Variable angle = tape.input(theta);
      const std::vector<Variable> y = lrpe_features(x, angle, positions(shape[0], x[0]), wide);
      std::vector<Tensor> adjoints;
      for (const uint32_t i : {4U, 5U})
        adjoints.push_back(random_tensor(y[0].shape(), i).to(Dtype::bf16).to(y[0].dtype()));
      tape.backward(y, adjoints);
      return std::vector<Tensor>{y[0], y[1], tape.gradient(x[0]), tape.gradient(x[1]), tape.gradient(angle)};
    };
    const std::vector<Tensor> narrow = outcome(false), wide = outcome(true);
    for (size_t i = 0; i < narrow.size(); ++i) {
      EXPECT_EQ(wide[i].dtype(), i < 2 ? Dtype::f32 : narrow[i].dtype());
      EXPECT_TRUE(same_bits(wide[i].to(narrow[i].dtype()), narrow[i])) << shape << " result " << i;
    }
  }
}

// A product of two features does not depend on theta where their positions are equal, however large: what
// queries and keys say of it are numbers of opposite sign. Left is what f32 rounds of them; bf16, hundreds.
TEST(Lrpe, PhasesOfOnePositionCancel) {
  for (const int64_t size : {16, 15}) {
    const Shape shape{70, 2, size};
    std::vector<double> t;
    for (int64_t i = 0; i < shape[0]; ++i) t.push_back(static_cast<double>(100003 + 17 * i));
    Tape tape;
    const Variable theta = tape.input(random_tensor({2, size}, 3).to(Dtype::f32));
    const std::vector<Variable> y =
        lrpe_features({random_tensor(shape, 1).to(Dtype::bf16), random_tensor(shape, 2).to(Dtype::bf16)},
                      theta, from_values({shape[0]}, Dtype::f32, t), true);
    tape.backward(y, {y[1], y[0]});
    for (const double x : to_values(tape.gradient(theta))) EXPECT_NEAR(x, 0, 1);
  }
}

TEST(Lrpe, AMillionTokensOnAnglesAreExact) {
  const Tensor x = random_tensor({1, 1, 4}, 1, Dtype::f32), theta = random_tensor({1, 4}, 2, Dtype::f32);
  const Tensor at = from_values({1}, Dtype::f32, {1234567});
  const std::vector<double> y = to_values(lrpe_features({x}, theta, at)[0]), a = to_values(x),
                            w = to_values(theta);
  for (size_t j = 0; j < 4; ++j) {
    EXPECT_NEAR(y[j], a[j] * std::cos(1234567 * w[j]), 1e-6);
    EXPECT_NEAR(y[4 + j], a[j] * std::sin(1234567 * w[j]), 1e-6);
  }
}

TEST(Lrpe, Refuses) {
  const Tensor x = random_tensor({2, 1, 4}, 1), theta = random_tensor({1, 4}, 2), at = random_tensor({2}, 3);
  EXPECT_THROW(lrpe_features({}, theta, at), Error);
  EXPECT_THROW(lrpe_features({x}, random_tensor({2, 2}, 1), at), Error);
  EXPECT_THROW(lrpe_features({x}, theta, at.to(Dtype::f32)), Error);
  EXPECT_THROW(lrpe_features({x, random_tensor({2, 2, 2}, 1)}, theta, at), Error);
}

}  // namespace
}  // namespace weft
