#include "autograd/ops/gated_rms_norm.h"

#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/rms_norm.h"
#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

std::vector<Variable> fused(const std::vector<Variable>& v) { return {gated_rms_norm(v[0], v[1], 1e-3)}; }
std::vector<Variable> by_two_ops(const std::vector<Variable>& v) {
  return {multiply(rms_norm(v[0], {}, 1e-3), v[1])};
}

TEST(GatedRmsNorm, Gradients) {
  for (const Shape& shape : {Shape{4, 7}, Shape{3, 2, 33}, Shape{1, 1}, Shape{5}, Shape{0, 4}})
    expect_op(fused, {random_tensor(shape, 1), random_tensor(shape, 2)});
  expect_same_bits_on_threads(fused, {random_tensor({700, 3, 65}, 1), random_tensor({700, 3, 65}, 2)});
  EXPECT_THROW(gated_rms_norm(random_tensor({2, 3}, 1), random_tensor({3, 2}, 1)), Error);
}

// Widths of one vector a thread to four, by a warp and by two, and of more than registers hold; odd ones.
TEST(GatedRmsNorm, AgainstTheTwoOps) {
  for (const Shape& shape : {Shape{37, 64}, Shape{33, 200}, Shape{70, 768}, Shape{33, 1000}, Shape{9, 1024},
                             Shape{35, 2048}, Shape{5, 4096}, Shape{2, 20000}, Shape{3, 17, 40}})
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
      const std::vector<Tensor> x{random_tensor(shape, 1, dtype), random_tensor(shape, 2, dtype)};
      const std::vector<Tensor> one = outputs_and_gradients(fused, x),
                                two = outputs_and_gradients(by_two_ops, x);
      for (size_t i = 0; i < two.size(); ++i)
        EXPECT_LE(difference(one[i], two[i]), tolerance::of(dtype))
            << shape << name_of(dtype) << " result " << i;
    }
}

// Rows that can be moved by whole vectors, and the same ones an element further on.
TEST(GatedRmsNorm, AlignmentChangesNoBit) {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16})
    for (const int64_t n : {16, 768, 2048}) {
      const Tensor wide = random_tensor({40, 2 * n + 24}, 1, dtype), odd = zeros({40, 2 * n + 8}, dtype);
      odd.columns(1, 1 + 2 * n).copy_from(wide.columns(16, 16 + 2 * n));
      const auto halves = [&](const Tensor& x, int64_t first) {
        return outputs_and_gradients(fused,
                                     {x.columns(first, first + n), x.columns(first + n, first + 2 * n)});
      };
      const std::vector<Tensor> a = halves(wide, 16), b = halves(odd, 1);
      for (size_t i = 0; i < a.size(); ++i)
        EXPECT_TRUE(same_bits(a[i], b[i])) << n << name_of(dtype) << " result " << i;
    }
}

// The gate's gradient is left among those of the projection that it comes from.
TEST(GatedRmsNorm, TheGateAsColumns) {
  const auto packed = [](const Function& f) {
    return [f](const std::vector<Variable>& v) {
      const std::vector<Variable> parts = split_columns(v[1], std::vector<int64_t>{16, 48});
      return std::vector<Variable>{parts[0], f({v[0], parts[1]})[0]};
    };
  };
  const std::vector<Tensor> x{random_tensor({9, 48}, 1), random_tensor({9, 64}, 2)};
  const std::vector<Tensor> one = outputs_and_gradients(packed(fused), x),
                            two = outputs_and_gradients(packed(by_two_ops), x);
  for (size_t i = 0; i < two.size(); ++i) EXPECT_LE(difference(one[i], two[i]), 1e-12) << i;
}

}  // namespace
}  // namespace weft
