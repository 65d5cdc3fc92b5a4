// The delta rule at the widths and in the dtype that its tiled kernels take on a GPU; on a CPU the same holds
// of the composition.

#include "attention/delta_rule.h"

#include "autograd/ops/arrange.h"
#include "tests/attention/conformance.h"

namespace weft {
namespace {

// |a - b| / |b|
double relative(const Tensor& a, const Tensor& b) {
  const std::vector<double> x = to_values(a), y = to_values(b);
  double difference = 0, size = 0;
  for (size_t i = 0; i < x.size(); ++i) difference += (x[i] - y[i]) * (x[i] - y[i]), size += y[i] * y[i];
  return std::sqrt(difference / size);
}
constexpr double rounded = 0.015;  // a few roundings to bf16, of 2^-9 each

struct Widths {
  int64_t key, value;
  bool gated;
};
class WideHeadsOfDeltaRule : public testing::TestWithParam<Widths> {
 protected:
  static Subject subject(Dtype dtype) {
    const auto [key, value, gated] = GetParam();
    const Dimensions dims{.heads = 2, .kv_heads = 2, .key = key, .value = value, .width = 8};
    return Subject(
        dims, dtype,
        [gated = gated](const Dimensions& d, const ParameterScope& scope) -> std::unique_ptr<Mechanism> {
          if (gated) return std::make_unique<GatedDeltaRule>(DeltaRuleConfig{}, d, scope);
          return std::make_unique<DeltaRule>(DeltaRuleConfig{}, d, scope);
        });
  }
};
INSTANTIATE_TEST_SUITE_P(DeltaRule, WideHeadsOfDeltaRule,
                         testing::Values(Widths{64, 64, true}, Widths{64, 64, false}, Widths{128, 64, true},
                                         Widths{64, 128, true}, Widths{128, 128, false}),
                         [](const auto& info) {
                           return text(info.param.key, "x", info.param.value,
                                       info.param.gated ? "Gated" : "");
                         });

TEST_P(WideHeadsOfDeltaRule, OutputsAndGradientsInBf16EqualThoseInF64) {
  Subject narrow = subject(Dtype::bf16), wide = subject(Dtype::f64);
  const Layout layout = whole_documents({130, 1, 64, 37});
  const std::vector<Tensor> inputs = random_inputs(*narrow.mechanism, layout.tokens(), Dtype::bf16);
  std::vector<Tensor> exact;
  for (const Tensor& x : inputs) exact.push_back(x.to(Dtype::f64));
  const Outcome y = run_with_gradients(narrow, layout, inputs);
  const Outcome expected = run_with_gradients(wide, layout, exact, nullptr,
                                              random_adjoint(y.output.shape(), Dtype::bf16).to(Dtype::f64));
  EXPECT_LE(relative(y.output, expected.output), rounded);
  ASSERT_EQ(y.gradients.size(), inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i)
    EXPECT_LE(relative(y.gradients[i], expected.gradients[i]), rounded)
        << "of " << narrow.mechanism->inputs()[i].name;
}

// Kernels that divide a strength out of its gradient must stand one that is 0, or negative.
TEST_P(WideHeadsOfDeltaRule, StrengthsOfZeroAndBelowHaveGradients) {
  Subject narrow = subject(Dtype::bf16), wide = subject(Dtype::f64);
  const Layout layout = whole_documents({130});
  std::vector<Tensor> inputs = random_inputs(*narrow.mechanism, layout.tokens(), Dtype::bf16), exact;
  std::vector<double> strengths = to_values(inputs[3]);
  for (size_t i = 0; i < strengths.size(); ++i)
    strengths[i] = i % 3 == 0 ? 0 : i % 7 == 1 ? -0.5 : strengths[i];
  inputs[3] = from_values(inputs[3].shape(), inputs[3].dtype(), strengths);
  for (const Tensor& x : inputs) exact.push_back(x.to(Dtype::f64));
  const Outcome y = run_with_gradients(narrow, layout, inputs);
  const Outcome expected = run_with_gradients(wide, layout, exact, nullptr,
                                              random_adjoint(y.output.shape(), Dtype::bf16).to(Dtype::f64));
  for (size_t i = 0; i < inputs.size(); ++i)
    EXPECT_LE(relative(y.gradients[i], expected.gradients[i]), rounded)
        << "of " << narrow.mechanism->inputs()[i].name;
}

TEST_P(WideHeadsOfDeltaRule, PiecesOfADocumentEqualTheWhole) {
  Subject s = subject(Dtype::bf16);
  const int64_t n = 200;
  const std::vector<Tensor> inputs = random_inputs(*s.mechanism, n, Dtype::bf16);
  const Tensor whole =
      run_whole(*s.mechanism, whole_documents({n}), std::vector<Variable>(inputs.begin(), inputs.end()));
  Stream stream;
  std::vector<Variable> pieces;
  int64_t at = 0;
  for (const int64_t count : {100, 1, 64, 35}) {
    const Layout layout = make_layout({{0, at, at + count}});
    std::vector<Variable> part;
    for (const Tensor& x : inputs) part.push_back(x.rows(at, at + count));
    LocalCrossing cross(layout, &stream);
    pieces.push_back(s.mechanism->forward(block_of(part, layout), cross));
    at += count;
  }
  EXPECT_LE(relative(concatenate(pieces, 0), whole), rounded);
}

}  // namespace
}  // namespace weft
