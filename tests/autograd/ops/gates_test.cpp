#include "autograd/ops/gates.h"

#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

struct Named {
  const char* name;
  Function fused, basic;  // the same by a change of type, the function and a factor
  bool wide;
};

template <class Fused, class Basic>
Named named(const char* name, bool wide, Fused fused, Basic basic) {
  return {name, [=](const std::vector<Variable>& v) { return std::vector<Variable>{fused(v[0])}; },
          [=](const std::vector<Variable>& v) {
            return std::vector<Variable>{basic(wide ? cast(v[0], wide_of(v[0].dtype())) : v[0])};
          },
          wide};
}

std::vector<Named> all_gates() {
  const auto log_decay = [](const Variable& x) { return scale(log_sigmoid(x), 1.0 / 3); };
  return {named(
              "log_sigmoid", true, [](const Variable& x) { return log_sigmoid_gate(x, 3); }, log_decay),
          named("sigmoid", true, sigmoid_gate, sigmoid), named("softplus", true, softplus_gate, softplus),
          named("silu", false, silu_gate, silu)};
}

TEST(Gates, Gradients) {
  for (const Named& gate : all_gates()) {
    SCOPED_TRACE(gate.name);
    for (const Shape& shape :
         {Shape{4, 7}, Shape{3, 2, 33}, Shape{5, 2, 16}, Shape{1, 1}, Shape{5}, Shape{0, 4}})
      expect_op(gate.fused, {random_tensor(shape, 1)});
    expect_same_bits_on_threads(gate.fused, {random_tensor({700, 3, 65}, 1)});
  }
}

// In f64 and f32 the basic ops' own values; of bf16 a GPU makes what is f32 by shorter means, but not by so
// much that it would show beside a rounding of the input.
TEST(Gates, AgainstBasicOpsNearAndFar) {
  std::vector<double> values;
  for (int i = -400; i < 400; ++i) values.push_back(i * 0.05);
  for (const double x : {-3000.0, -300.0, -80.0, -40.0, 40.0, 80.0, 300.0, 3000.0}) values.push_back(x);
  const auto n = static_cast<int64_t>(values.size());
  for (const Named& gate : all_gates())
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
      SCOPED_TRACE(text(gate.name, " ", name_of(dtype)));
      const Tensor x = from_values({n / 8, 8}, dtype, values);
      const std::vector<double> got = to_values(gate.fused({x})[0]),
                                exact = to_values(gate.basic({x.to(Dtype::f64)})[0]);
      const double close = dtype == Dtype::f64 ? 1e-14 : gate.wide || dtype == Dtype::f32 ? 1e-5 : 5e-3;
      for (size_t i = 0; i < got.size(); ++i)
        EXPECT_NEAR(got[i], exact[i], close * std::abs(exact[i]) + 1e-37) << values[i];
      EXPECT_EQ(gate.fused({x})[0].dtype(), gate.wide ? wide_of(dtype) : dtype);
    }
}

// As columns of a packed projection: the gradient lies in that of the whole, and is that of the basic ops.
TEST(Gates, ColumnsOfAProjection) {
  for (const Named& gate : all_gates())
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16})
      for (const int64_t width : {5, 16}) {
        SCOPED_TRACE(text(gate.name, " ", name_of(dtype), " ", width));
        const auto packed = [&](const Function& f) {
          return [&](const std::vector<Variable>& v) {
            const std::vector<Variable> parts =
                split_columns(v[0], std::vector<Shape>{{9, width}, {9, 2, width}, {9, 3}});
            return std::vector<Variable>{parts[0], f({parts[1]})[0], parts[2]};
          };
        };
        const std::vector<Tensor> x{random_tensor({9, 3 * width + 3}, 1, dtype)};
        const std::vector<Tensor> got = outputs_and_gradients(packed(gate.fused), x),
                                  expected = outputs_and_gradients(packed(gate.basic), x);
        for (size_t i = 0; i < got.size(); ++i)
          EXPECT_LE(difference(got[i], expected[i]), tolerance::of(dtype)) << i;
      }
}

}  // namespace
}  // namespace weft
