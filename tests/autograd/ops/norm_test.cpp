#include "autograd/ops/add_rms_norm.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/layer_norm.h"
#include "autograd/ops/rms_norm.h"
#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

std::vector<Variable> rms(const std::vector<Variable>& v) {
  return {rms_norm(v[0], v.size() > 1 ? v[1] : Variable(), 1e-3)};
}
std::vector<Variable> layer(const std::vector<Variable>& v) {
  return {layer_norm(v[0], v.size() > 1 ? v[1] : Variable(), v.size() > 2 ? v[2] : Variable(), 1e-3)};
}

TEST(RmsNorm, AgainstTheDefinition) {
  const int64_t rows = 3, n = 37;
  const Tensor x = random_tensor({rows, n}, 1), gain = random_tensor({n}, 2);
  const std::vector<double> a = to_values(x), g = to_values(gain), y = to_values(rms_norm(x, gain, 1e-3));
  for (int64_t i = 0; i < rows; ++i) {
    double squares = 0;
    for (int64_t j = 0; j < n; ++j) squares += a[i * n + j] * a[i * n + j];
    for (int64_t j = 0; j < n; ++j)
      EXPECT_NEAR(y[i * n + j], a[i * n + j] / std::sqrt(squares / n + 1e-3) * g[j], 1e-12);
  }
}

TEST(LayerNorm, AgainstTheDefinition) {
  const int64_t rows = 3, n = 37;
  const Tensor x = random_tensor({rows, n}, 1), gain = random_tensor({n}, 2), bias = random_tensor({n}, 3);
  const std::vector<double> a = to_values(x), g = to_values(gain), b = to_values(bias),
                            y = to_values(layer_norm(x, gain, bias, 1e-3));
  for (int64_t i = 0; i < rows; ++i) {
    double sum = 0, squares = 0;
    for (int64_t j = 0; j < n; ++j) sum += a[i * n + j];
    for (int64_t j = 0; j < n; ++j) squares += std::pow(a[i * n + j] - sum / n, 2);
    for (int64_t j = 0; j < n; ++j)
      EXPECT_NEAR(y[i * n + j], (a[i * n + j] - sum / n) / std::sqrt(squares / n + 1e-3) * g[j] + b[j],
                  1e-12);
  }
}

TEST(Norms, GradientsAtRandomGains) {
  for (const Shape& shape : {Shape{4, 7}, Shape{3, 2, 33}, Shape{1, 1}, Shape{5}, Shape{0, 4}}) {
    const Tensor x = random_tensor(shape, 1);
    const Tensor gain = random_tensor({shape[-1]}, 2), bias = random_tensor({shape[-1]}, 3);
    expect_op(rms, {x});
    expect_op(rms, {x, gain});
    expect_op(layer, {x});
    expect_op(layer, {x, gain});
    expect_op(layer, {x, gain, bias});
  }
  expect_op([](const std::vector<Variable>& v) { return std::vector{layer_norm(v[0], {}, v[1])}; },
            {random_tensor({4, 7}, 1), random_tensor({7}, 2)});
}

std::vector<Variable> sum_and_norm(const std::vector<Variable>& v) {
  const SumAndNorm y = add_rms_norm(v[0], v[1], v.size() > 2 ? v[2] : Variable(), 1e-3);
  return {y.sum, y.norm};
}
std::vector<Variable> sum_then_norm(const std::vector<Variable>& v) {
  const Variable sum = add(v[0], v[1]);
  return {sum, rms_norm(sum, v.size() > 2 ? v[2] : Variable(), 1e-3)};
}

// Widths of one vector a thread, of three and of four, and of more than registers hold; odd ones.
TEST(AddRmsNorm, SameBitsAsTheTwoOps) {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16})
    for (const Shape& shape : {Shape{4, 7}, Shape{37, 64}, Shape{70, 768}, Shape{33, 1000}, Shape{35, 2048},
                               Shape{3, 2, 33}, Shape{2, 20000}, Shape{0, 4}}) {
      const std::vector<Tensor> inputs{random_tensor(shape, 1, dtype), random_tensor(shape, 2, dtype),
                                       random_tensor({shape[-1]}, 3, dtype)};
      for (const size_t count : {2, 3}) {
        const std::vector<Tensor> some(inputs.begin(), inputs.begin() + static_cast<std::ptrdiff_t>(count));
        const std::vector<Tensor> one = outputs_and_gradients(sum_and_norm, some),
                                  two = outputs_and_gradients(sum_then_norm, some);
        for (size_t i = 0; i < two.size(); ++i)
          EXPECT_TRUE(same_bits(one[i], two[i])) << shape << name_of(dtype) << " result " << i;
      }
    }
}

TEST(AddRmsNorm, Gradients) {
  for (const Shape& shape : {Shape{4, 7}, Shape{3, 2, 33}, Shape{1, 1}, Shape{0, 4}}) {
    expect_op(sum_and_norm, {random_tensor(shape, 1), random_tensor(shape, 2)});
    expect_op(sum_and_norm,
              {random_tensor(shape, 1), random_tensor(shape, 2), random_tensor({shape[-1]}, 3)});
  }
  // The norm alone is used, as at the end of a model; or the sum alone.
  for (const size_t which : {0, 1})
    expect_op([&](const std::vector<Variable>& v) { return std::vector{sum_and_norm(v)[which]}; },
              {random_tensor({4, 7}, 1), random_tensor({4, 7}, 2), random_tensor({7}, 3)});
  EXPECT_THROW(add_rms_norm(random_tensor({2, 3}, 1), random_tensor({3, 2}, 1)), Error);
}

TEST(Norms, SameBitsOnThreads) {
  const std::vector<Tensor> inputs{random_tensor({700, 3, 65}, 1), random_tensor({65}, 2),
                                   random_tensor({65}, 3)};
  expect_same_bits_on_threads(rms, {inputs[0], inputs[1]});
  expect_same_bits_on_threads(layer, inputs);
}

TEST(Norms, ColumnViewsEqualTheirCopies) {
  const Tensor wide = random_tensor({9, 24}, 1, Dtype::f32), gain = random_tensor({4}, 2, Dtype::f32);
  const Tensor view = wide.columns(4, 16).reshape({9, 3, 4}), copy = view.contiguous();
  ASSERT_FALSE(view.dense());
  for (const Function& f : {Function(rms), Function(layer)}) {
    const std::vector<Tensor> a = outputs_and_gradients(f, {view, gain}),
                              b = outputs_and_gradients(f, {copy, gain});
    for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(same_bits(a[i], b[i])) << i;
  }
}

// Rows that can be moved by whole vectors, and the same ones an element further on; few of them and many.
TEST(Norms, AlignmentChangesNoBit) {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16})
    for (const int64_t n : {16, 64, 512, 768, 2048, 5000})
      for (const int64_t rows : {1, 40, 301}) {
        const Tensor wide = random_tensor({rows, n + 24}, 1, dtype), gain = random_tensor({n}, 2, dtype);
        const Tensor whole = wide.columns(16, 16 + n).contiguous(), odd = zeros({rows, n + 8}, dtype);
        odd.columns(1, 1 + n).copy_from(whole);
        for (const Function& f : {Function(rms), Function(layer)}) {
          const std::vector<Tensor> a = outputs_and_gradients(f, {whole, gain}),
                                    b = outputs_and_gradients(f, {wide.columns(16, 16 + n), gain}),
                                    c = outputs_and_gradients(f, {odd.columns(1, 1 + n), gain});
          for (size_t i = 0; i < a.size(); ++i) {
            EXPECT_TRUE(same_bits(a[i], b[i])) << rows << " x " << n << name_of(dtype) << " result " << i;
            EXPECT_TRUE(same_bits(a[i], c[i])) << rows << " x " << n << name_of(dtype) << " result " << i;
          }
        }
      }
}

// Sums of many rows, over as many blocks as there are, at the widths between which kernels change; by
// themselves and with the gradient of a residual stream.
TEST(RmsNorm, ManyRowsAgainstF64) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    for (const int64_t n : {8, 96, 264, 768, 1000, 1536, 3072, 4104}) {
      const Shape shape{n > 1000 ? 300 : few() ? 900 : n > 264 ? 3000 : 9000, n};
      const Tensor x = random_tensor(shape, 1, dtype), dy = random_tensor(shape, 2, dtype),
                   dsum = random_tensor(shape, 4, dtype), factors = random_tensor({n}, 3, Dtype::f32);
      for (const bool residual : {false, true}) {
        const auto gradients = [&](Dtype type, Dtype wide) {
          Tape tape;
          const Variable a = tape.input(x.to(type)), gain = tape.input(factors.to(wide));
          if (residual) {
            const SumAndNorm y = add_rms_norm(a, zeros(shape, type), gain);
            tape.backward({y.sum, y.norm}, {dsum.to(type), dy.to(type)});
          } else {
            tape.backward(rms_norm(a, gain), dy.to(type));
          }
          return std::vector{tape.gradient(a), tape.gradient(gain)};
        };
        const std::vector<Tensor> got = gradients(dtype, Dtype::f32),
                                  exact = gradients(Dtype::f64, Dtype::f64);
        EXPECT_LE(difference(got[0], exact[0]), tolerance::of(dtype)) << shape << name_of(dtype) << residual;
        EXPECT_LE(norm_difference(got[1], exact[1]), tolerance::of(Dtype::f32))
            << shape << name_of(dtype) << residual;
      }
    }
}

// A gain is always f32, beside bf16 activations, and its gradient lands in the store; a shift far from zero
// does not eat the variance.
TEST(Norms, F32GainsWithBf16Activations) {
  ParameterStore store(Dtype::bf16);
  const Parameter gain = store.declare({"g", {48}, ParameterKind::vector, Initializer::normal(1)});
  store.commit();
  ASSERT_EQ(gain->working.dtype(), Dtype::f32);
  const Tensor x = random_tensor({300, 48}, 1, Dtype::bf16), dy = random_tensor({300, 48}, 2, Dtype::bf16);
  for (const bool centred : {false, true}) {
    store.begin_step();
    Tape tape;
    tape.backward(centred ? layer_norm(x, gain) : rms_norm(x, gain), dy);
    Tape exact_tape;
    const Variable exact = exact_tape.input(gain->master.to(Dtype::f64));
    const Tensor x64 = x.to(Dtype::f64);
    exact_tape.backward(centred ? layer_norm(x64, exact) : rms_norm(x64, exact), dy.to(Dtype::f64));
    EXPECT_LE(difference(gain->gradient, exact_tape.gradient(exact)), tolerance::of(Dtype::f32));
  }
  const Tensor far = from_values({1, 4}, Dtype::f32, {10000, 10001, 10002, 10003});
  EXPECT_LE(
      difference(layer_norm(far, {}, {}, 0),
                 from_values({1, 4}, Dtype::f64, {-1.3416407865, -0.4472135955, 0.4472135955, 1.3416407865})),
      tolerance::of(Dtype::f32));
}

TEST(Norms, WrongGainsAreRefused) {
  EXPECT_THROW(rms_norm(random_tensor({2, 3}, 1), random_tensor({4}, 1)), Error);
  EXPECT_THROW(layer_norm(random_tensor({2, 3}, 1), {}, random_tensor({1, 3}, 1)), Error);
}

}  // namespace
}  // namespace weft
