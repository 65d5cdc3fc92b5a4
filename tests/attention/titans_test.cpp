// What keeps the memory of Titans from growing without end (titans.h).

#include "attention/titans.h"

#include <cmath>

#include "tests/attention/conformance.h"

namespace weft {
namespace {

// The largest answer of a memory that reads 100 chunks of one key over and over, with values of either sign
// up to 1, the largest gate of the step, nothing forgotten and this momentum.
double largest_answer(int64_t chunk, double step_limit, double eta) {
  const Dimensions dims{.heads = 1, .kv_heads = 1, .key = 3, .value = 2, .width = 3};
  const int64_t n = 100 * chunk;
  ParameterStore store(Dtype::f64);
  TitansConfig config;
  config.chunk = chunk;
  config.step_limit = step_limit;
  const Titans memory(config, dims, {store, ""});
  std::vector<double> keys, values = to_values(random_tensor({n, 1, 2}, 7));
  for (double& v : values) v = std::tanh(v);
  for (int64_t i = 0; i < n; ++i) keys.insert(keys.end(), {0.6, 0, 0.8});
  const Tensor k = from_values({n, 1, 3}, Dtype::f64, keys), v = from_values({n, 1, 2}, Dtype::f64, values);
  const auto gate = [&](double value) { return Variable(full({n, 1}, value, Dtype::f64)); };
  const Layout layout = whole_documents({n});
  double largest = 0;
  for (const double y :
       to_values(run_whole(memory, layout, {k, k, v, gate(1), gate(eta), gate(0)}).value())) {
    if (!std::isfinite(y)) return INFINITY;
    largest = std::max(largest, std::abs(y));
  }
  return largest;
}

// By the definition each chunk overshoots further than the one before. A limit of 1 never overshoots: answers
// stay near the values, whatever the momentum.
TEST(TitansSteps, OfKeysThatAreAlikeGrowWithoutALimit) {
  for (const int64_t chunk : {4, 16, 64})
    for (const double eta : {0.0, 0.5, 0.9, 0.99}) {
      EXPECT_GT(largest_answer(chunk, 0, eta), 1e20) << chunk << ", " << eta;
      EXPECT_LT(largest_answer(chunk, 1, eta), 3) << chunk << ", " << eta;
    }
}

// Beyond 2 they grow even without momentum; at 2 they do not yet.
TEST(TitansSteps, ALimitOfTwoIsTheLast) {
  EXPECT_LT(largest_answer(16, 1.9, 0), 30);
  EXPECT_GT(largest_answer(16, 2.5, 0), 1e9);
}

}  // namespace
}  // namespace weft
