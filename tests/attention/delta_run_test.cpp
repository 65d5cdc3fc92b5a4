// The delta rule by one kernel against its recurrence, token by token, and against its composition by chunks.

#include "attention/delta_run.h"

#include "attention/delta_rule.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "tests/attention/conformance.h"
#include "tests/attention/served_types.h"
#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

struct DeltaWidths {
  int64_t heads, key, value;
  bool gated;
};
constexpr double kDeltaScale = 0.7;

// {q, k, v, beta, start and, if gated, g} to {o, end}
std::vector<Variable> by_kernel(const std::vector<Variable>& v, const Layout& layout) {
  const Variable start = cast(v[4], wide_of(v[0].dtype()));
  const DeltaRun r =
      delta_run(v[0], v[1], v[2], v[3], v.size() > 5 ? v[5] : Variable(), start, kDeltaScale, layout, true);
  return {r.o, r.final_state};
}

std::vector<Variable> by_token(const std::vector<Variable>& v, const Layout& layout) {
  const int64_t h = v[0].dim(1), d = v[0].dim(2), e = v[2].dim(2);
  std::vector<Variable> outputs, ends;
  int64_t t = 0;
  for (size_t segment = 0; segment < layout.segments.size(); ++segment) {
    const auto which = static_cast<int64_t>(segment);
    Variable s = reshape(slice(v[4], 0, which, which + 1), {h, d, e});
    for (const int64_t end = t + layout.segments[segment].size(); t < end; ++t) {
      const auto row = [&](int i, int64_t size) { return reshape(slice(v[i], 0, t, t + 1), {h, 1, size}); };
      if (v.size() > 5) s = multiply(s, exp(row(5, 1)));
      const Variable error = subtract(row(2, e), matmul(row(1, d), s));
      s = add(s, matmul(row(1, d), multiply(error, row(3, 1)), {true, false}));
      outputs.push_back(reshape(scale(matmul(row(0, d), s), kDeltaScale), {1, h, e}));
    }
    ends.push_back(reshape(s, {1, h, d, e}));
  }
  return {concatenate(outputs, 0), concatenate(ends, 0)};
}

std::vector<Tensor> delta_inputs(const DeltaWidths& s, const Layout& layout) {
  const int64_t n = layout.tokens(), h = s.heads;
  const Variable k = random_tensor({n, h, s.key}, 2);
  const Tensor beta = sigmoid(random_tensor({n, h}, 4)), g = scale(square(random_tensor({n, h}, 6)), -0.3);
  std::vector<Tensor> inputs{
      random_tensor({n, h, s.key}, 1), divide(k, sqrt(sum(square(k), -1, true))),
      random_tensor({n, h, s.value}, 3), beta,
      random_tensor({static_cast<int64_t>(layout.segments.size()), h, s.key, s.value}, 5)};
  if (s.gated) inputs.push_back(g);
  return inputs;
}

void expect_recurrence(const std::vector<Tensor>& inputs, const Layout& layout, Dtype dtype) {
  const std::vector<Tensor> rounded = each_float(inputs, [&](const Tensor& x) { return x.to(dtype); });
  const auto got = outputs_and_gradients([&](const auto& v) { return by_kernel(v, layout); }, rounded);
  const auto expected =
      outputs_and_gradients([&](const auto& v) { return by_token(v, layout); },
                            each_float(rounded, [](const Tensor& x) { return x.to(Dtype::f64); }));
  ASSERT_EQ(got.size(), expected.size());
  // Gradients of a strength are sums over a whole head, whose terms may cancel.
  for (size_t i = 0; i < got.size(); ++i)
    EXPECT_LE(dtype == Dtype::f64 ? difference(got[i], expected[i]) : norm_difference(got[i], expected[i]),
              dtype == Dtype::bf16 ? tolerance::kBf16Norm : tolerance::of(dtype))
        << name_of(dtype) << ", " << layout.tokens() << " tokens, result " << i;
}

class DeltaRunOnCpu : public testing::Test {
 protected:
  void SetUp() override {
    if (default_device() != Device::cpu) GTEST_SKIP() << "of f64, which a GPU's kernels do not take";
  }
};

TEST(DeltaRun, EqualsTheRecurrenceAtEveryLength) {
  const Dtype dtype = served({Dtype::f64, Dtype::f32})[0];
  for (int64_t n = 1; n <= 130; ++n) {
    const Layout layout = whole_documents({n, 1, 0, 3 + n / 3});
    expect_recurrence(delta_inputs({2, 5, 3, n % 2 == 0}, layout), layout, dtype);
  }
}

TEST(DeltaRun, EqualsTheRecurrenceInEveryTypeAndWidth) {
  const Layout layout = whole_documents({31, 0, 64, 1, 33, 100});
  for (const Dtype dtype : served({Dtype::f64, Dtype::f32, Dtype::bf16}))
    for (const DeltaWidths& s : {DeltaWidths{1, 1, 1, true},
                                 {3, 33, 17, true},
                                 {1, 7, 70, false},
                                 {2, 32, 32, true},
                                 {1, 64, 48, false},
                                 {1, 40, 128, true},
                                 {2, 64, 64, true},
                                 {1, 128, 64, false},
                                 {1, 128, 128, true}}) {
      SCOPED_TRACE(text(s.heads, " heads of ", s.key, " and ", s.value));
      expect_recurrence(delta_inputs(s, layout), layout, dtype);
    }
}

TEST_F(DeltaRunOnCpu, IsAnOp) {
  const Layout layout = whole_documents({37, 1, 0, 34});
  for (const bool gated : {true, false}) {
    const auto inputs = delta_inputs({2, 5, 3, gated}, layout);
    expect_op([&](const auto& v) { return by_kernel(v, layout); }, inputs);
    expect_same_bits_on_threads([&](const auto& v) { return by_kernel(v, layout); }, inputs);
  }
}

// A gate that is shut forgets what came before it, and nothing else: what lies behind it is as exact as
// without it.
TEST(DeltaRun, GatesThatAreShutForgetAll) {
  const Layout layout = whole_documents({70, 45});
  for (const double shut : {-1e4, -double{INFINITY}, -80.0})
    for (const DeltaWidths& s : {DeltaWidths{2, 6, 5, true}, {2, 64, 64, true}})
      for (const Dtype dtype : served({Dtype::f64, Dtype::f32, Dtype::bf16})) {
        std::vector<Tensor> inputs = delta_inputs(s, layout);
        edit<double>(inputs[5], [&](double* g) {
          for (int64_t t = 0; t < layout.tokens(); ++t)
            if (t % 23 == 5 || t % 23 == 6 || t == 70) g[2 * t] = shut;
        });
        SCOPED_TRACE(text(shut, ", ", s.key, " and ", s.value));
        expect_recurrence(inputs, layout, dtype);
      }
}

// As LocalCrossing without kernels.
class ComposedDelta : public LocalCrossing {
 public:
  using LocalCrossing::LocalCrossing;
  using LocalCrossing::operator();
  Variable operator()(const Scan& part, const Block& block) override {
    Scan plain = part;
    plain.kernel = {};
    plain.step = {};
    return LocalCrossing::operator()(plain, block);
  }
};

// On every device: the state behind a document of no tokens is the one before it.
TEST(DeltaRun, OfNoTokensKeepsTheState) {
  const Tensor no_token = from_ints(std::vector<int32_t>{});
  const Layout layout{{{0, 5, 5}}, no_token, no_token};
  const Dtype f32 = Dtype::f32;
  const Variable q = zeros({0, 2, 3}, f32), v = zeros({0, 2, 4}, f32), beta = zeros({0, 2}, f32);
  const Tensor state = random_tensor({1, 2, 3, 4}, 1).to(f32);
  EXPECT_TRUE(same_bits(delta_run(q, q, v, beta, {}, state, 1, layout, true).final_state, state));
  for (const double x : to_values(delta_run(q, q, v, beta, {}, {}, 1, layout, true).final_state))
    EXPECT_EQ(x, 0);
}

TEST(DeltaRun, NamesWhatDoesNotFit) {
  const Layout layout = whole_documents({4});
  const Tensor q = random_tensor({4, 2, 3}, 1), v = random_tensor({4, 2, 5}, 2),
               beta = random_tensor({4, 2}, 3);
  const auto run = [&](const Variable& values, const Variable& strengths, const Variable& g,
                       const Variable& start) {
    delta_run(q, q, values, strengths, g, start, 1, layout, true);
  };
  EXPECT_THROW(run(random_tensor({5, 2, 5}, 2), beta, {}, {}), Error);
  EXPECT_THROW(run(v, random_tensor({3, 2}, 3), {}, {}), Error);
  EXPECT_THROW(run(v, beta, random_tensor({4, 1}, 3), {}), Error);
  EXPECT_THROW(run(v, beta, {}, random_tensor({2, 2, 3, 5}, 4)), Error);
}

TEST(DeltaRun, EqualsTheComposition) {
  const Layout layout = whole_documents({130, 1, 64, 37});
  for (const Dtype dtype : served({Dtype::f64, Dtype::f32, Dtype::bf16}))
    for (const DeltaWidths& s : {DeltaWidths{2, 32, 32, true}, {3, 9, 31, false}, {1, 64, 33, true}}) {
      const Dimensions dims{
          .heads = s.heads, .kv_heads = s.heads, .key = s.key, .value = s.value, .width = 8};
      Subject subject(dims, dtype,
                      [&](const Dimensions& d, const ParameterScope& scope) -> std::unique_ptr<Mechanism> {
                        if (s.gated) return std::make_unique<GatedDeltaRule>(DeltaRuleConfig{}, d, scope);
                        return std::make_unique<DeltaRule>(DeltaRuleConfig{}, d, scope);
                      });
      const std::vector<Tensor> inputs = random_inputs(*subject.mechanism, layout.tokens(), dtype);
      const Outcome fused = run_with_gradients(subject, layout, inputs);
      const Outcome composed =
          run_with_gradients(subject, layout, inputs, [&](const std::vector<Variable>& v) {
            ComposedDelta cross(layout);
            return std::vector{subject.mechanism->forward(block_of(v, layout), cross)};
          });
      SCOPED_TRACE(text(name_of(dtype), ", ", s.heads, " heads of ", s.key, " and ", s.value));
      EXPECT_LE(difference(fused.output, composed.output), tolerance::of(dtype));
      for (size_t i = 0; i < inputs.size(); ++i)
        EXPECT_LE(difference(fused.gradients[i], composed.gradients[i]), tolerance::of(dtype)) << i;

      // In pieces from a kept state, and the state behind them.
      Stream streams[2];
      const std::vector<Variable> x(inputs.begin(), inputs.end());
      for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 41}, {41, 42}, {42, 130}}) {
        const Layout piece = make_layout({{0, begin, end}});
        std::vector<Variable> rows;
        for (const Tensor& i : inputs) rows.push_back(i.rows(begin, end));
        LocalCrossing by_kernels(piece, &streams[0]);
        ComposedDelta by_chunks(piece, &streams[1]);
        EXPECT_LE(difference(subject.mechanism->forward(block_of(rows, piece), by_kernels),
                             subject.mechanism->forward(block_of(rows, piece), by_chunks)),
                  tolerance::of(dtype));
      }
      EXPECT_LE(difference(streams[0].slots[0].states.at(0)[1], streams[1].slots[0].states.at(0)[1]),
                tolerance::of(dtype));
    }
}

}  // namespace
}  // namespace weft
