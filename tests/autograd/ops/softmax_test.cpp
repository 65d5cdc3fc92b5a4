#include "autograd/ops/softmax.h"

#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

std::vector<Variable> soft(const std::vector<Variable>& v) { return {softmax(v[0])}; }
std::vector<Variable> lse(const std::vector<Variable>& v) { return {log_sum_exp(v[0])}; }

TEST(Softmax, AgainstTheDefinition) {
  for (const int64_t n : {1, 5, 67}) {
    const Tensor x = random_tensor({3, n}, 1, Dtype::f64, 3);
    const std::vector<double> a = to_values(x), y = to_values(softmax(x)), l = to_values(log_sum_exp(x));
    for (int64_t i = 0; i < 3; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < n; ++j) sum += std::exp(a[i * n + j]);
      EXPECT_NEAR(l[i], std::log(sum), 1e-12);
      for (int64_t j = 0; j < n; ++j) EXPECT_NEAR(y[i * n + j], std::exp(a[i * n + j]) / sum, 1e-12);
    }
  }
}

TEST(Softmax, Gradients) {
  for (const Shape& shape : {Shape{4, 7}, Shape{2, 3, 65}, Shape{1, 1}, Shape{9}, Shape{0, 4}}) {
    const Tensor x = random_tensor(shape, 1);
    expect_op(soft, {x});
    expect_op(lse, {x});
  }
  const Tensor x = random_tensor({900, 129}, 2);
  expect_same_bits_on_threads(soft, {x});
  expect_same_bits_on_threads(lse, {x});
}

TEST(Softmax, LargeAndMaskedElements) {
  const double inf = INFINITY;
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
    Tape tape;
    const Variable x = tape.input(from_values({3, 2}, dtype, {1e4, -1e4, -inf, 3, -inf, -inf}));
    const Variable y = softmax(x), l = log_sum_exp(x);
    EXPECT_EQ(to_values(y), (std::vector<double>{1, 0, 0, 1, 0, 0}));
    EXPECT_EQ(to_values(l), to_values(from_values({3}, dtype, {1e4, 3, -inf})));
    tape.backward({y, l}, {random_tensor({3, 2}, 1, dtype), from_values({3}, dtype, {2, 4, 8})});
    EXPECT_EQ(to_values(tape.gradient(x)), (std::vector<double>{2, 0, 0, 4, 0, 0}));
  }
  const Tensor nan = from_values({2}, Dtype::f32, {NAN, 1});
  for (const double v : to_values(softmax(nan))) EXPECT_TRUE(std::isnan(v));
  EXPECT_TRUE(std::isnan(to_values(log_sum_exp(nan))[0]));
}

}  // namespace
}  // namespace weft
