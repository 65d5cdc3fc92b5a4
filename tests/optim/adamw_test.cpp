#include "optim/adamw.h"

#include "tests/optim/example_store.h"

namespace weft {
namespace {

// The definition, one number at a time.
struct ScalarAdamW {
  double w, m = 0, v = 0;
  void update(double g, double lr, double decay, const AdamWConfig& c, int t) {
    w *= 1 - lr * decay;
    m = c.beta1 * m + (1 - c.beta1) * g;
    v = c.beta2 * v + (1 - c.beta2) * g * g;
    w -= lr * (m / (1 - std::pow(c.beta1, t))) / (std::sqrt(v / (1 - std::pow(c.beta2, t))) + c.eps);
  }
};

class AdamWTest : public testing::TestWithParam<Dtype> {};

TEST_P(AdamWTest, EqualsTheScalarDefinition) {
  const AdamWConfig config{.lr = 0.02, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.3};
  const auto store = example_store(GetParam());
  AdamW optimizer(config, *store, whole(*store));
  std::vector<std::vector<ScalarAdamW>> expected;
  for (const auto& entry : store->entries()) {
    expected.emplace_back();
    for (const double w : to_values(entry->master)) expected.back().push_back({w});
  }
  StepState s;
  s.gradient_scale = 0.5;
  for (int t = 1; t <= 50; ++t) {
    draw_gradients(*store, static_cast<uint32_t>(t));
    s.rate = 1.0 / t;
    for (size_t e = 0; e < expected.size(); ++e) {
      const ParameterEntry& entry = *store->entries()[e];
      if (!entry.info.trainable) continue;
      const std::vector<double> g = to_values(entry.gradient);
      const double decay = entry.info.kind == ParameterKind::vector ? 0 : config.weight_decay;
      for (size_t i = 0; i < g.size(); ++i)
        expected[e][i].update(0.5 * g[i], config.lr / t, decay, config, t);
    }
    optimizer.step(s);
  }
  EXPECT_EQ(s.updates, 50);
  const double tolerance = GetParam() == Dtype::f64 ? 1e-12 : 1e-5;
  for (size_t e = 0; e < expected.size(); ++e) {
    const ParameterEntry& entry = *store->entries()[e];
    const std::vector<double> w = to_values(entry.master);
    double worst = 0;
    for (size_t i = 0; i < w.size(); ++i) worst = std::max(worst, std::abs(w[i] - expected[e][i].w));
    EXPECT_LE(worst, tolerance) << entry.info.name;
    EXPECT_TRUE(same_bits(entry.working, entry.master.to(entry.working.dtype()))) << entry.info.name;
  }
}

TEST_P(AdamWTest, FirstStepByHand) {
  // Correction makes the first step g / |g|: 1 (1 - 0.1 x 0.5) - 0.1 for a matrix, 1 + 0.1 for a vector.
  ParameterStore store(GetParam());
  const Parameter matrix = store.declare({"m", {1, 1}, ParameterKind::matrix, Initializer::constant(1)});
  const Parameter vector = store.declare({"v", {1}, ParameterKind::vector, Initializer::constant(1)});
  store.commit();
  fill_with(matrix->gradient, [](int64_t) { return 0.25; });
  fill_with(vector->gradient, [](int64_t) { return -8; });
  AdamW optimizer({.lr = 0.1, .weight_decay = 0.5}, store, whole(store));
  StepState s;
  optimizer.step(s);
  EXPECT_NEAR(to_values(matrix->master)[0], 0.85, 1e-7);
  EXPECT_NEAR(to_values(vector->master)[0], 1.1, 1e-7);
  const double m = to_values(optimizer.state()[0].values)[0], v = to_values(optimizer.state()[2].values)[0];
  EXPECT_NEAR(m, 0.1 * 0.25, 1e-8);
  EXPECT_NEAR(v, 0.05 * 0.0625, 1e-9);
}

INSTANTIATE_TEST_SUITE_P(Precisions, AdamWTest, testing::Values(Dtype::f64, Dtype::f32, Dtype::bf16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST(AdamW, SmallUpdatesAreNotLostInBf16) {
  ParameterStore store(Dtype::bf16);
  const Parameter p = store.declare({"p", {1, 1}, ParameterKind::matrix, Initializer::constant(1)});
  store.commit();
  AdamW optimizer({.lr = 1e-4, .weight_decay = 0}, store, whole(store));
  StepState s;
  for (int i = 0; i < 100; ++i) {
    fill_with(p->gradient, [](int64_t) { return 1; });
    optimizer.step(s);
  }
  EXPECT_NEAR(to_values(p->master)[0], 0.99, 1e-5);
  EXPECT_EQ(to_values(p->working)[0], 0.98828125);  // the nearest of the bf16 numbers, 1/256 apart
}

}  // namespace
}  // namespace weft
