#include "autograd/ops/elementwise.h"

#include "tests/autograd/test_tensors.h"

namespace weft {
namespace {

template <class F>
void check_unary(const char* name) {
  SCOPED_TRACE(name);
  // exp of a normal: positive, so that log and sqrt are defined; and signed for the others.
  const Tensor positive = exp(Variable(random_tensor({3, 7}, 1))).value();
  const bool needs_positive =
      std::is_same_v<F, Log> || std::is_same_v<F, Sqrt> || std::is_same_v<F, Reciprocal>;
  const Tensor x = needs_positive ? positive : random_tensor({3, 7}, 1);
  expect_gradients([](const std::vector<Variable>& v) { return std::vector{unary<F>(v[0])}; }, {x});
  const Tensor exact = unary<F>(x).value();
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    EXPECT_LE(difference(unary<F>(x.to(dtype)).value(), exact), tolerance::of(dtype)) << name_of(dtype);
}

template <class F>
void check_binary(const char* name) {
  SCOPED_TRACE(name);
  const Shape shapes[][2] = {{{4, 3, 5}, {4, 3, 5}}, {{4, 3, 5}, {5}},    {{5}, {4, 3, 5}},
                             {{4, 1, 5}, {1, 3, 1}}, {{4, 3, 5}, {3, 1}}, {{4, 3, 5}, {4, 1, 1}},
                             {{1}, {2, 2}}};
  for (const auto& [sa, sb] : shapes) {
    const Tensor a = random_tensor(sa, 1), b = exp(Variable(random_tensor(sb, 2))).value();
    expect_gradients([](const std::vector<Variable>& v) { return std::vector{binary<F>(v[0], v[1])}; },
                     {a, b});
    const Tensor exact = binary<F>(a, b).value();
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
      EXPECT_LE(difference(binary<F>(a.to(dtype), b.to(dtype)).value(), exact), 4 * tolerance::of(dtype))
          << name_of(dtype);
  }
}

template <class... F>
void check_all(FunctionList<F...>) {
  if constexpr (requires { (F::forward(1.0), ...); })
    (check_unary<F>(typeid(F).name()), ...);
  else
    (check_binary<F>(typeid(F).name()), ...);
}

TEST(Elementwise, EveryUnaryFunction) { check_all(UnaryFunctions{}); }
TEST(Elementwise, EveryBinaryFunctionBroadcasts) { check_all(BinaryFunctions{}); }

TEST(Elementwise, BroadcastValues) {
  const Variable a = from_values({2, 1}, Dtype::f32, {1, 2}), b = from_values({3}, Dtype::f32, {10, 20, 30});
  EXPECT_EQ(to_values(add(a, b)), (std::vector<double>{11, 21, 31, 12, 22, 32}));
  EXPECT_EQ(to_values(subtract(b, a)), (std::vector<double>{9, 19, 29, 8, 18, 28}));
  EXPECT_THROW(add(a, from_values({4, 3}, Dtype::f32, std::vector<double>(12))), Error);
  EXPECT_THROW(add(a, random_tensor({2, 1}, 1)), Error);  // f32 and f64
}

TEST(Elementwise, CastAndScale) {
  expect_gradients([](const std::vector<Variable>& v) { return std::vector{scale(v[0], -2.5, 3)}; },
                   {random_tensor({6}, 1)});
  Tape tape;
  const Variable x = tape.input(random_tensor({4}, 1, Dtype::f32));
  tape.backward(cast(x, Dtype::bf16), random_tensor({4}, 2, Dtype::bf16));
  EXPECT_EQ(tape.gradient(x).dtype(), Dtype::f32);
}

// The vector forms over the whole range of f32, against the library in double.
TEST(VectorMath, WithinTwoUlp) {
  double worst_exp = 0, worst_tanh = 0;
  for (uint32_t bits = 0; bits < 0x7f800000u; bits += 7919) {
    for (const float x : {std::bit_cast<float>(bits), -std::bit_cast<float>(bits)}) {
      const auto ulps = [](float y, double exact) {
        const double clamped = std::min(exact, 3.4028234663852886e38);
        if (std::isinf(y)) return exact > 3.4e38 ? 0.0 : 1e9;
        const double unit =
            std::max(std::ldexp(1.0, std::ilogb(std::max(std::abs(clamped), 1e-45)) - 23), 0x1p-149);
        return std::abs(y - clamped) / unit;
      };
      if (std::abs(x) < 200)
        worst_exp = std::max(worst_exp, ulps(vector_math::exp(x), std::exp(static_cast<double>(x))));
      worst_tanh = std::max(worst_tanh, ulps(vector_math::tanh(x), std::tanh(static_cast<double>(x))));
    }
  }
  EXPECT_LE(worst_exp, 2.0);
  EXPECT_LE(worst_tanh, 16.0);
  EXPECT_TRUE(std::isnan(vector_math::exp(NAN)));
  EXPECT_TRUE(std::isnan(vector_math::tanh(NAN)));
  EXPECT_EQ(vector_math::exp(-INFINITY), 0.0f);
  EXPECT_EQ(vector_math::exp(INFINITY), INFINITY);
}

}  // namespace
}  // namespace weft
