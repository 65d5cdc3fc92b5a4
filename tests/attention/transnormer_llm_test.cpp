// The gradient of TransNormerLLM's phases over long texts (transnormer_llm.h).

#include "attention/transnormer_llm.h"

#include "tests/attention/conformance.h"
#include "tests/tolerances.h"

namespace weft {
namespace {

// theta's gradient is a difference of sums that grow with the position: what is rounded before they meet is
// multiplied by it.
TEST(TransNormerLlm, PhasesOfLongTextsHaveAGradientInBf16) {
  if (default_device() != Device::cpu)
    GTEST_SKIP() << "a GPU's kernel gives gradients of features in bf16 (DESIGN.md, Seams)";
  const int64_t n = 6000;
  const Dimensions dims{.heads = 2, .kv_heads = 2, .key = 4, .value = 4, .width = 8, .layers = 4};
  const auto make = [](const Dimensions& d, const ParameterScope& scope) {
    return std::make_unique<TransNormerLlm>(TransNormerLlmConfig{}, d, scope);
  };
  Subject narrow(dims, Dtype::bf16, make), exact(dims, Dtype::f64, make);
  exact.take_parameters(narrow);
  const Tensor x = random_tensor({n, 8}, 1, Dtype::bf16), adjoint = random_tensor({n, 8}, 2, Dtype::bf16);
  const Layout layout = whole_documents({n});
  const auto gradient = [&](Subject& s, Dtype dtype) {
    run_with_gradients(s, layout, {x.to(dtype)}, nullptr, adjoint.to(dtype));
    return s.store.find("theta")->gradient;
  };
  EXPECT_LE(norm_difference(gradient(narrow, Dtype::bf16), gradient(exact, Dtype::f64)),
            tolerance::kBf16Norm);
}

}  // namespace
}  // namespace weft
