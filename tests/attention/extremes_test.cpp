// Inputs at the ends of their domains: outputs and gradients stay finite, in every type.

#include <cmath>

#include "autograd/ops/arrange.h"
#include "tests/attention/conformance.h"

namespace weft {
namespace {

class Extremes : public testing::TestWithParam<ConformanceCase> {};
INSTANTIATE_TEST_SUITE_P(Registry, Extremes, testing::ValuesIn(conformance_cases()), case_name);

constexpr int64_t kTokens = 37;

void expect_finite(Subject& s, const std::vector<Tensor>& inputs, const std::string& what) {
  const Layout layout = whole_documents({inputs[0].dim(0)});
  const Outcome outcome = run_with_gradients(s, layout, inputs);
  const auto is_finite = [](const Tensor& x) {
    for (const double value : to_values(x))
      if (!std::isfinite(value)) return false;
    return true;
  };
  EXPECT_TRUE(is_finite(outcome.output)) << what;
  for (size_t i = 0; i < outcome.gradients.size(); ++i)
    EXPECT_TRUE(is_finite(outcome.gradients[i])) << what << ", gradient " << i;
}

TEST_P(Extremes, OutputsAndGradientsStayFinite) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    Subject s(GetParam(), dtype);
    const std::vector<Input> names = s.mechanism->inputs();
    const std::vector<Tensor> plain = random_inputs(*s.mechanism, kTokens, dtype);
    const std::string type = name_of(dtype);
    // Scores of a hundred, and of ten thousand.
    for (const double factor : {10.0, 100.0}) {
      std::vector<Tensor> large = plain;
      for (size_t i = 0; i < large.size(); ++i)
        if (names[i].domain == Domain::real) large[i] = scale(plain[i], factor);
      expect_finite(s, large, text(type, ", times ", factor));
      std::vector<Tensor> alike;
      const std::vector<int32_t> first(kTokens, 0);
      for (const Tensor& x : large) alike.push_back(gather_rows(x, from_ints(first)));
      expect_finite(s, alike, text(type, ", all tokens alike, times ", factor));
    }
    std::vector<Tensor> nothing = plain;
    for (size_t i = 0; i < nothing.size(); ++i)
      if (names[i].domain == Domain::real || names[i].domain == Domain::direction)
        nothing[i] = zeros(plain[i].shape(), dtype);
    expect_finite(s, nothing, type + ", zeros");
    expect_finite(s, random_inputs(*s.mechanism, 1, dtype), type + ", one token");
    for (const bool open : {true, false}) {
      std::vector<Tensor> all = plain;
      for (size_t i = 0; i < plain.size(); ++i) {
        if (names[i].domain != Domain::log_decay && names[i].domain != Domain::unit) continue;
        const double decay = open ? 0 : -1e4, gate = open ? 1 : 0;
        all[i] = full(plain[i].shape(), names[i].domain == Domain::unit ? gate : decay, dtype);
        std::vector<Tensor> one = plain;
        one[i] = all[i];
        expect_finite(s, one, text(type, ", ", names[i].name, open ? " open" : " shut"));
      }
      if (!open) expect_finite(s, all, type + ", all gates shut");
    }
  }
}

// Exponents far above and far below what a float holds: only their differences count.
TEST(LargestSoFar, KeysOfAnySizeWeighAsTheirExponentsSay) {
  const Dimensions dims{.heads = 2, .kv_heads = 2, .key = 4, .value = 3, .width = 8};
  ParameterStore store(Dtype::f32);
  const auto m = find_mechanism("linear").make(
      parse_attributes({"feature_map=lln", "normalize=true", "chunk=5"}), dims, {store, ""});
  store.commit();
  const Layout layout = whole_documents({23});
  const std::vector<Tensor> inputs = random_inputs(*m, 23, Dtype::f32);
  const std::vector<Variable> x(inputs.begin(), inputs.end());
  const Variable plain = run_whole(*m, layout, x);
  for (const double shift : {300.0, -300.0})
    EXPECT_LE(difference(run_whole(*m, layout, {x[0], scale(x[1], 1, shift), x[2]}), plain), 1e-3) << shift;
}

TEST(LargestSoFar, MapsWithoutADenominatorAreRefused) {
  const Dimensions dims{.heads = 2, .kv_heads = 2, .key = 4, .value = 4, .width = 8};
  const auto code = [&](const char* id, const std::vector<std::string>& settings) {
    ParameterStore store;
    try {
      find_mechanism(id).make(parse_attributes(settings), dims, {store, ""});
    } catch (const Error& e) {
      return e.code;
    }
    return Exit::ok;
  };
  EXPECT_EQ(code("linear", {"feature_map=favor"}), Exit::recipe);
  EXPECT_EQ(code("transnormer", {"feature_map=lln"}), Exit::recipe);
  EXPECT_EQ(code("transnormer", {"feature_map=relu"}), Exit::ok);
}

}  // namespace
}  // namespace weft
