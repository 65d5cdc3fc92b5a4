#include "autograd/ops/swiglu.h"

#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

std::vector<Variable> packed(const std::vector<Variable>& v) { return {swiglu(v[0])}; }
std::vector<Variable> pair(const std::vector<Variable>& v) { return {swiglu(v[0], v[1])}; }

TEST(Swiglu, TheGateComesFirst) {
  const Tensor x = random_tensor({3, 10}, 1);
  const std::vector<double> a = to_values(x), y = to_values(swiglu(x));
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 5; ++j) {
      const double gate = a[i * 10 + j], up = a[i * 10 + 5 + j];
      EXPECT_NEAR(y[i * 5 + j], gate / (1 + std::exp(-gate)) * up, 1e-13);
    }
  EXPECT_TRUE(same_bits(swiglu(x), swiglu(x.columns(0, 5), x.columns(5, 10))));
  EXPECT_THROW(swiglu(random_tensor({3, 5}, 1)), Error);
  EXPECT_THROW(swiglu(random_tensor({3, 5}, 1), random_tensor({3, 4}, 1)), Error);
}

TEST(Swiglu, Gradients) {
  for (const Shape& shape : {Shape{4, 6}, Shape{3, 66}, Shape{1, 2}, Shape{0, 4}}) {
    expect_op(packed, {random_tensor(shape, 1)});
    expect_op(pair, {random_tensor(shape, 1), random_tensor(shape, 2)});
  }
  expect_same_bits_on_threads(packed, {random_tensor({301, 258}, 3)});
}

// The halves multiplied by basic ops are what it is, and how it goes back.
TEST(Sglu, GradientsAndTheProductOfTheHalves) {
  const Function fused = [](const std::vector<Variable>& v) { return std::vector{sglu(v[0])}; };
  const Function halves = [](const std::vector<Variable>& v) {
    const int64_t f = v[0].dim(1) / 2;
    const std::vector<Variable> x = split_columns(v[0], {f, f});
    return std::vector{multiply(x[0], x[1])};
  };
  for (const Shape& shape : {Shape{4, 6}, Shape{3, 66}, Shape{5, 48}, Shape{1, 2}, Shape{0, 4}}) {
    expect_op(fused, {random_tensor(shape, 1)});
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
      const std::vector<Tensor> x{random_tensor(shape, 1, dtype)};
      const std::vector<Tensor> one = outputs_and_gradients(fused, x), two = outputs_and_gradients(halves, x);
      for (size_t i = 0; i < two.size(); ++i)
        EXPECT_TRUE(same_bits(one[i], two[i])) << shape << name_of(dtype) << " result " << i;
    }
  }
  expect_same_bits_on_threads(fused, {random_tensor({301, 258}, 3)});
  EXPECT_THROW(sglu(random_tensor({3, 5}, 1)), Error);
}

TEST(Swiglu, FarFromZeroIsFinite) {
  Tape tape;
  const Variable x = tape.input(from_values({2, 2}, Dtype::f32, {-1000, 3, 1000, 3}));
  const Variable y = swiglu(x);
  tape.backward(y, from_values({2, 1}, Dtype::f32, {1, 1}));
  EXPECT_EQ(to_values(y), (std::vector<double>{0, 3000}));
  EXPECT_EQ(to_values(tape.gradient(x)), (std::vector<double>{0, 0, 3, 1000}));
}

}  // namespace
}  // namespace weft
