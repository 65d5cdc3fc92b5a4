#include "attention/selected_attention.h"

#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

// Two groups of three queries over four rows each; the last query has an empty list.
Tensor lists() { return from_ints({0, 1, 2, 1, 3, 0, 2, 2, 1, 4, 5, 6, 7, 6, 5, 4, 4, 4}).reshape({6, 3}); }
Tensor gates() {
  return from_values({6, 3}, Dtype::f64,
                     {1, 0.5, 0.2, 0.7, 1, 0, 0.3, 0.9, 1, 0.6, 0.1, 1, 1, 1, 0.4, 0, 0, 0});
}

TEST(SelectedAttention, ByHand) {
  const Tensor q = random_tensor({6, 4}, 1), k = random_tensor({8, 4}, 2), v = random_tensor({8, 5}, 3);
  for (const bool gate_keys : {true, false}) {
    const auto y =
        selected_attention(q, k, v, gates(), lists(), {.scale = 0.5, .gate_keys = gate_keys, .groups = 2});
    const std::vector<double> Q = to_values(q), K = to_values(k), V = to_values(v), g = to_values(gates()),
                              row = to_values(lists()), o = to_values(y[0]), lse = to_values(y[1]);
    for (int64_t i = 0; i < 6; ++i) {
      double sum = 0, out[5] = {};
      for (int64_t j = 3 * i; j < 3 * i + 3; ++j) {
        if (g[j] == 0) continue;
        const auto r = static_cast<int64_t>(row[j]);
        double s = 0;
        for (int64_t c = 0; c < 4; ++c) s += 0.5 * Q[i * 4 + c] * K[r * 4 + c] * (gate_keys ? g[j] : 1);
        sum += std::exp(s);
        for (int64_t c = 0; c < 5; ++c) out[c] += std::exp(s) * g[j] * V[r * 5 + c];
      }
      for (int64_t c = 0; c < 5; ++c) EXPECT_NEAR(o[i * 5 + c], sum > 0 ? out[c] / sum : 0, 1e-12);
      EXPECT_DOUBLE_EQ(lse[i], std::log(sum));
    }
  }
}

TEST(SelectedAttention, Gradients) {
  for (const bool gate_keys : {true, false}) {
    // The query of an empty list has no finite lse to differentiate.
    const Function f = [=](const std::vector<Variable>& v) {
      return std::vector{
          selected_attention(v[0], v[1], v[2], v[3], lists(), {0.5, gate_keys, 2})[0],
          slice(selected_attention(v[0], v[1], v[2], v[3], lists(), {0.5, gate_keys, 2})[1], 0, 0, 5)};
    };
    const std::vector<Tensor> inputs{random_tensor({6, 4}, 1), random_tensor({8, 4}, 2),
                                     random_tensor({8, 5}, 3), gates()};
    // A gate of 0 is a row left out, not a number near 0.
    std::vector<Tensor> open = inputs;
    open[3] = sigmoid(random_tensor({6, 3}, 4)).value();
    expect_gradients(f, open);
    expect_meta_shapes(f, open);
    expect_gradients(
        [&](const std::vector<Variable>& v) {
          return f({v[0], v[1], v[2], inputs[3]});
        },
        {inputs[0], inputs[1], inputs[2]});
  }
}

TEST(SelectedAttention, NobodyAndWrongShapes) {
  const Tensor none = zeros({0, 4}, Dtype::f64), nobody = zeros({0, 3}, Dtype::f64);
  const auto y = selected_attention(none, none, none, nobody, from_ints({}).reshape({0, 3}), {.groups = 0});
  EXPECT_EQ(y[0].shape(), (Shape{0, 4}));
  const Tensor q = random_tensor({6, 4}, 1), k = random_tensor({8, 4}, 2);
  EXPECT_THROW(selected_attention(q, k, k, gates(), lists(), {.groups = 4}), Error);
  EXPECT_THROW(selected_attention(q, random_tensor({8, 5}, 2), k, gates(), lists(), {}), Error);
}

}  // namespace
}  // namespace weft
