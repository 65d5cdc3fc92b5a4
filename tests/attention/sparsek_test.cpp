// What SPARSEK keeps while it decodes.

#include "attention/sparsek.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "tests/attention/conformance.h"

namespace weft {
namespace {

// One document, its score heads and keys by token, decoded one by one.
struct Decode {
  explicit Decode(SparseKConfig config, int64_t n)
      : layer(std::move(config), dims, {store, ""}), inputs(random_inputs(layer, n, Dtype::f64)) {}
  void step(int64_t t) {
    const Layout layout = make_layout({{0, t, t + 1}});
    std::vector<Variable> one;
    for (const Tensor& x : inputs) one.push_back(x.rows(t, t + 1));
    LocalCrossing cross(layout, &stream);
    layer.forward(block_of(one, layout), cross);
  }
  // The scores of the pairs of a head that are kept.
  std::set<double> kept(int64_t head, int64_t k) const {
    const State& state = stream.slots.back().states.at(0);
    const std::vector<double> u = to_values(state[2]),
                              held = to_values(state[4]);  // (1, H, k), (1, H, support)
    const auto support = state[4].dim(2);
    std::set<double> scores;
    for (int64_t j = 0; j < k; ++j)
      if (held[head * support + j] == 1) scores.insert(u[head * k + j]);
    return scores;
  }
  Dimensions dims{.heads = 2, .kv_heads = 2, .key = 4, .value = 4, .width = 8};
  ParameterStore store{Dtype::f64};
  SparseK layer;
  std::vector<Tensor> inputs;
  Stream stream;
};

TEST(SparseKAttention, EvictedPairsNeverReturn) {
  const int64_t n = 60, k = 5, window = 3;
  Decode d({.k = k, .window = window}, n);
  const std::vector<double> u = to_values(d.inputs[3]);
  std::set<double> before, gone;
  for (int64_t t = 0; t < n; ++t) {
    d.step(t);
    const std::set<double> now = d.kept(1, k);
    EXPECT_EQ(std::ssize(now), std::clamp<int64_t>(t + 1 - window, 0, k));
    for (const double score : before)
      if (!now.contains(score)) gone.insert(score);
    for (const double score : now) EXPECT_FALSE(gone.contains(score)) << "at " << t;
    before = now;
  }
  EXPECT_GT(gone.size(), 5U);
}

// k pairs and the window, and `support` scores a head, each with a mark: no more after 200 tokens than
// after 40.
TEST(SparseKAttention, KeepsABoundedCache) {
  const int64_t k = 5, window = 8, support = 20;
  Decode d({.k = k, .window = window, .support = support}, 200);
  for (int64_t t = 0; t < 40; ++t) d.step(t);
  const int64_t bytes = d.stream.bytes();
  for (int64_t t = 40; t < 200; ++t) d.step(t);
  EXPECT_EQ(d.stream.bytes(), bytes);
  const int64_t heads = d.dims.heads, pair = heads * (d.dims.key + d.dims.value) * 8;
  const int64_t query_score_place = heads * (d.dims.key + 1) * 8 + 2 * 4;  // what a Halo keeps besides
  EXPECT_EQ(bytes, (k + window) * pair + window * query_score_place + 2 * support * heads * 8);
}

// Of equal scores the earlier are kept and carry the gates' gradient, in whole documents too.
TEST(SparseKAttention, EqualScoresCountByAge) {
  Subject s({"sparsek", "k=2 window=3"}, Dtype::f64);
  std::vector<Tensor> inputs = random_inputs(*s.mechanism, 23, Dtype::f64);
  const Layout layout = whole_documents({23});
  const std::vector<double> scores = to_values(inputs[3]);
  for (const double levels : {0.0, 1.0}) {
    std::vector<double> u = scores;
    for (double& x : u) x = levels * std::round(x) / 8;
    inputs[3] = from_values(inputs[3].shape(), Dtype::f64, u);
    const Outcome fast = run_with_gradients(s, layout, inputs);
    const Outcome slow = run_with_gradients(s, layout, inputs, [&](const std::vector<Variable>& x) {
      return std::vector{s.mechanism->reference(block_of(x, layout))};
    });
    EXPECT_LE(difference(fast.output, slow.output), tolerance::of(Dtype::f64));
    for (size_t i = 0; i < fast.gradients.size(); ++i)
      EXPECT_LE(difference(fast.gradients[i], slow.gradients[i]), tolerance::of(Dtype::f64)) << i;
  }
}

TEST(SparseKAttention, RefusesASupportThatIsNone) {
  ParameterStore store;
  try {
    SparseK({.k = 4, .support = 4}, {}, {store, ""});
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Exit::recipe);
  }
}

}  // namespace
}  // namespace weft
