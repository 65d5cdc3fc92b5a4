// The gradient of TransNormerLLM's phases over long texts (transnormer_llm.h).

#include "attention/transnormer_llm.h"

#include <cstdlib>
#include <numeric>

#include "tests/attention/conformance.h"
#include "tests/tolerances.h"

namespace weft {
namespace {

// theta's gradient is a difference of sums that grow with the position: what is rounded before they meet is
// multiplied by it.
void expect_gradient_of_theta(int64_t key, int64_t value, const std::vector<int64_t>& lengths) {
  const Dimensions dims{.heads = 2, .kv_heads = 2, .key = key, .value = value, .width = 8, .layers = 4};
  const auto make = [](const Dimensions& d, const ParameterScope& scope) {
    return std::make_unique<TransNormerLlm>(TransNormerLlmConfig{}, d, scope);
  };
  Subject narrow(dims, Dtype::bf16, make), exact(dims, Dtype::f64, make);
  exact.take_parameters(narrow);
  const int64_t n = std::accumulate(lengths.begin(), lengths.end(), int64_t(0));
  const Tensor x = random_tensor({n, 8}, 1, Dtype::bf16), adjoint = random_tensor({n, 8}, 2, Dtype::bf16);
  const Layout layout = whole_documents(lengths);
  const auto gradient = [&](Subject& s, Dtype dtype) {
    run_with_gradients(s, layout, {x.to(dtype)}, nullptr, adjoint.to(dtype));
    return s.store.find("theta")->gradient;
  };
  EXPECT_LE(norm_difference(gradient(narrow, Dtype::bf16), gradient(exact, Dtype::f64)), tolerance::kBf16Norm)
      << key << " by " << value << ", " << lengths[0] << " tokens";
}

TEST(TransNormerLlm, PhasesOfLongTextsHaveAGradientInBf16) {
  for (const int64_t n : {1500, 6000}) {
    expect_gradient_of_theta(4, 4, {n});
    expect_gradient_of_theta(32, 64, {n});  // features are twice as wide as keys
  }
  expect_gradient_of_theta(20, 24, {1501, 0, 70});
  expect_gradient_of_theta(64, 64, {1500, 1, 130});
  expect_gradient_of_theta(64, 128, {6000});
  expect_gradient_of_theta(128, 128, {2001});
}

#ifdef WEFT_CUDA
// As GPUs before Hopper compute it.
TEST(TransNormerLlm, PhasesHaveAGradientByMmaToo) {
  if (default_device() != Device::cuda) GTEST_SKIP() << "kernels need a GPU";
  setenv("WEFT_KERNELS", "mma", 1);
  expect_gradient_of_theta(64, 128, {6000, 70});
  expect_gradient_of_theta(64, 64, {1500});
  unsetenv("WEFT_KERNELS");
}
#endif

}  // namespace
}  // namespace weft
