// Inputs at the ends of their domains: outputs and gradients stay finite, in every type.

#include <cmath>

#include "attention/running_max.h"
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

// What comes to nothing has gradients in the definition too.
TEST_P(Extremes, TheDefinitionOfZerosIsFinite) {
  Subject s(GetParam(), Dtype::f64);
  const std::vector<Input> names = s.mechanism->inputs();
  std::vector<Tensor> inputs = random_inputs(*s.mechanism, 9, Dtype::f64);
  for (size_t i = 0; i < inputs.size(); ++i)
    if (names[i].domain == Domain::real || names[i].domain == Domain::direction)
      inputs[i] = zeros(inputs[i].shape(), Dtype::f64);
  const Layout layout = whole_documents({9});
  const Outcome fast = run_with_gradients(s, layout, inputs);
  const Outcome slow = run_with_gradients(s, layout, inputs, [&](const std::vector<Variable>& x) {
    return std::vector{s.mechanism->reference(block_of(x, layout))};
  });
  EXPECT_LE(difference(fast.output, slow.output), tolerance::of(Dtype::f64));
  for (size_t i = 0; i < fast.gradients.size(); ++i)
    for (const double value : to_values(slow.gradients[i])) EXPECT_TRUE(std::isfinite(value)) << i;
}

// A number of tokens, heads or features that nobody can mean is refused by its name, before a size overflows.
TEST(Attributes, AbsurdSizesAreRefused) {
  int64_t checked = 0;
  for (const MechanismEntry& entry : mechanisms())
    for (const FieldDescription& f : entry.describe({})) {
      if (f.type != "int" || f.traits.speed_only) continue;
      for (const char* value : {"9223372036854775807", "4611686018427387904", "10000000000"}) {
        ParameterStore store;
        try {
          entry.make(parse_attributes({f.name + "=" + value}), small_dimensions(entry), {store, ""});
          ADD_FAILURE() << entry.id << " took " << f.name << "=" << value;
        } catch (const Error& e) {
          EXPECT_EQ(e.code, Exit::recipe) << entry.id << " " << f.name << ": " << e.what();
          EXPECT_EQ(e.where, f.name + "=" + value) << entry.id;
        }
        ++checked;
      }
    }
  EXPECT_GE(checked, 60);
}

// Weights of e^-50 are numbers of f64: their mean is that of any others.
TEST(Normaliser, SmallWeightsCountInF64) {
  const Dimensions dims{.heads = 1, .kv_heads = 1, .key = 2, .value = 1, .width = 2};
  ParameterStore store(Dtype::f64);
  const auto m = find_mechanism("linear").make(
      parse_attributes({"feature_map=elu", "normalize=true", "chunk=2"}), dims, {store, ""});
  store.commit();
  const Tensor small = full({3, 1, 2}, -25, Dtype::f64), v = from_values({3, 1, 1}, Dtype::f64, {3, 5, 1});
  const Layout layout = whole_documents({3});
  for (const bool naive : {false, true}) {
    const std::vector<Variable> x{small, small, v};
    const std::vector<double> y =
        to_values((naive ? m->reference(block_of(x, layout)) : run_whole(*m, layout, x)).value());
    const double mean[] = {3, 4, 3};
    for (int t = 0; t < 3; ++t) EXPECT_NEAR(y[t], mean[t], 1e-12) << naive << ", token " << t;
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

// The same in bf16, with keys that it holds exactly here and 128 further away.
TEST(LargestSoFar, KeysOfBf16WeighAsTheirExponentsSay) {
  const Dimensions dims{.heads = 2, .kv_heads = 2, .key = 4, .value = 3, .width = 8};
  ParameterStore store(Dtype::bf16);
  const auto m = find_mechanism("linear").make(
      parse_attributes({"feature_map=lln", "normalize=true", "chunk=5"}), dims, {store, ""});
  store.commit();
  const Layout layout = whole_documents({23});
  std::vector<Tensor> inputs = random_inputs(*m, 23, Dtype::bf16);
  std::vector<double> whole = to_values(inputs[1]);
  for (double& x : whole) x = std::round(x);
  const auto with_keys = [&](double shift) {
    std::vector<double> keys = whole;
    for (double& x : keys) x += shift;
    const Tensor k = from_values(inputs[1].shape(), Dtype::bf16, keys);
    EXPECT_EQ(to_values(k), keys) << "held exactly";
    return run_whole(*m, layout, {inputs[0], k, inputs[2]});
  };
  const Variable plain = with_keys(0);
  for (const double shift : {128.0, -128.0})
    EXPECT_LE(difference(with_keys(shift), plain), tolerance::of(Dtype::bf16)) << shift;
}

// A largest value is one of those that came in, so in every type it is exact.
TEST(LargestSoFar, IsExactInEveryType) {
  const Layout layout = whole_documents({13, 1, 9});
  const int64_t heads = 3;
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16})
    for (const int64_t chunk : {1, 4, 64}) {
      const Tensor x = random_tensor({layout.tokens(), heads}, 1).to(dtype);
      LocalCrossing cross(layout);
      const SoFar so_far =
          largest_so_far(x, -4, chunk, {{}, layout.position, layout.document}, cross);  // -4 is one in bf16
      const std::vector<double> values = to_values(x), before = to_values(so_far.before.value()),
                                now = to_values(so_far.now.value());
      const std::vector<double> position = to_values(layout.position);
      std::vector<double> largest(static_cast<size_t>(heads));
      for (int64_t t = 0; t < layout.tokens(); ++t)
        for (int64_t h = 0; h < heads; ++h) {
          double& most = largest[h];
          if (position[t] == 0) most = -4;
          EXPECT_EQ(before[t * heads + h], most) << name_of(dtype) << ", chunk " << chunk << ", token " << t;
          most = std::max(most, values[t * heads + h]);
          EXPECT_EQ(now[t * heads + h], most) << name_of(dtype) << ", chunk " << chunk << ", token " << t;
        }
    }
}

// Queries and keys whose features lie apart: of size 2 the softmax of one is (1, 0, 0, 1), of the other
// (0, 1, 1, 0). All keys then weigh alike and little, and the output is the mean of the values seen, not 0.
TEST(Hedgehog, WeightsNeverVanish) {
  const Dimensions dims{.heads = 2, .kv_heads = 2, .key = 2, .value = 3, .width = 4};
  const int64_t n = 11;
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
    ParameterStore store(dtype);
    const auto m = find_mechanism("linear").make(
        parse_attributes({"feature_map=hedgehog", "normalize=true", "chunk=4"}), dims, {store, ""});
    store.commit();
    std::vector<double> q, k, v;
    for (int64_t i = 0; i < n * dims.heads; ++i) {
      q.insert(q.end(), {1e4, 0});
      k.insert(k.end(), {0, 1e4});
      for (int64_t e = 0; e < dims.value; ++e) v.push_back(static_cast<double>(i / dims.heads % 2 + e));
    }
    const auto tensor = [&](int64_t size, const std::vector<double>& values) {
      return from_values({n, dims.heads, size}, dtype, values);
    };
    const std::vector<double> y =
        to_values(run_whole(*m, whole_documents({n}), {tensor(2, q), tensor(2, k), tensor(3, v)}).value());
    for (int64_t t = 0; t < n; ++t)
      for (int64_t h = 0; h < dims.heads; ++h)
        for (int64_t e = 0; e < dims.value; ++e) {
          const double ones = static_cast<double>((t + 1) / 2),
                       mean = ones / static_cast<double>(t + 1) + static_cast<double>(e);
          EXPECT_NEAR(y[(t * dims.heads + h) * dims.value + e], mean, (1 + mean) * tolerance::of(dtype))
              << name_of(dtype) << ", token " << t;
        }
  }
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
