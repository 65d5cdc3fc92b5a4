// The coefficients of the moving average against their definition by basic ops.

#include "attention/ema_coefficients.h"

#include <cmath>

#include "autograd/ops/elementwise.h"
#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

std::vector<Variable> fused(const std::vector<Variable>& v) {
  const EmaCoefficients c = ema_coefficients(v[0], v[1], v[2], v[3]);
  return {c.in, c.out, c.decay};
}

std::vector<Variable> composed(const std::vector<Variable>& v) {
  const Variable p = sigmoid(v[0]);
  return {multiply(p, v[2]), scale(v[3], 1 / std::sqrt(static_cast<double>(v[0].dim(1)))),
          scale(multiply(p, sigmoid(v[1])), -1, 1)};
}

std::vector<Tensor> learned(const Shape& shape, Dtype dtype) {
  std::vector<Tensor> all;
  for (uint32_t i = 0; i < 4; ++i) all.push_back(random_tensor(shape, i).to(dtype));
  return all;
}

TEST(EmaCoefficients, EqualTheirComposition) {
  for (const Shape& shape : {Shape{5, 3}, {700, 17}, {0, 4}})
    for (const Dtype dtype : {Dtype::f64, Dtype::f32}) {
      const auto got = outputs_and_gradients(fused, learned(shape, dtype)),
                 expected = outputs_and_gradients(composed, learned(shape, dtype));
      ASSERT_EQ(got.size(), 7U);
      for (size_t i = 0; i < got.size(); ++i)
        EXPECT_LE(difference(got[i], expected[i]), tolerance::of(dtype)) << shape << " result " << i;
    }
}

TEST(EmaCoefficients, AreAnOp) {
  const auto inputs = learned({5, 3}, Dtype::f64);
  expect_gradients(fused, inputs);
  expect_meta_shapes(fused, inputs);
  const auto copies = outputs_and_gradients(fused, inputs),
             views = outputs_and_gradients(fused, each_float(inputs, as_columns), true);
  for (size_t i = 0; i < copies.size(); ++i) EXPECT_TRUE(same_bits(views[i], copies[i])) << i;
  const auto narrow = learned({5, 3}, Dtype::bf16);
  EXPECT_THROW(ema_coefficients(narrow[0], narrow[1], narrow[2], narrow[3]), Error);
  EXPECT_THROW(ema_coefficients(inputs[0], inputs[1], inputs[2], random_tensor({3, 5}, 4)), Error);
}

// Straight into what a store keeps: the first writer of a step overwrites, the next adds; what is frozen is
// left alone.
TEST(EmaCoefficients, GradientsOfParametersAddUp) {
  ParameterStore store(Dtype::f32);
  std::vector<Parameter> learned;
  for (const char* name : {"alpha", "delta", "beta", "gamma"})
    learned.push_back(store.declare({name, {4, 3}, ParameterKind::vector, Initializer::normal(1)}));
  store.commit();
  std::vector<Tensor> once;
  for (const int times : {1, 2}) {
    store.begin_step();
    for (int i = 0; i < times; ++i) {
      Tape tape;
      const EmaCoefficients c = ema_coefficients(learned[0], learned[1], learned[2], learned[3]);
      tape.backward(std::vector<Variable>{c.in, c.out, c.decay},
                    {random_tensor({4, 3}, 5).to(Dtype::f32), random_tensor({4, 3}, 6).to(Dtype::f32),
                     random_tensor({4, 3}, 7).to(Dtype::f32)});
    }
    for (size_t i = 0; i < learned.size(); ++i) {
      const Tensor& gradient = learned[i]->gradient;
      if (times == 1)
        once.push_back(gradient.to(Dtype::f64));
      else
        EXPECT_LE(difference(gradient, scale(once[i], 2).value()), tolerance::of(Dtype::f32)) << i;
    }
    store.finish_step();
  }
}

}  // namespace
}  // namespace weft
