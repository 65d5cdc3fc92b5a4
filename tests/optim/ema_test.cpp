#include "optim/ema.h"

#include "optim/adamw.h"
#include "tests/optim/example_store.h"

namespace weft {
namespace {

TEST(Ema, IsTheWeightedMeanOfUpdatedWeights) {
  const auto store = example_store(Dtype::f64);
  const auto optimizer = make_optimizer({.lr = 0.1, .ema = 0.8}, *store);
  StepState s;
  std::vector<std::vector<double>> seen;
  const Parameter p = store->find("a.out");
  for (uint32_t step = 0; step < 6; ++step) {
    train(*store, *optimizer, s, step, step + 1);
    seen.push_back(to_values(p->master));
  }
  std::vector<double> mean(seen[0].size(), 0.0);
  double total = 0;
  for (int t = 0; t < 6; ++t) {
    const double weight = std::pow(0.8, 5 - t);
    total += weight;
    for (size_t i = 0; i < mean.size(); ++i) mean[i] += weight * seen[static_cast<size_t>(t)][i];
  }
  for (double& m : mean) m /= total;
  const AveragedWeights averaged(*store, *optimizer);
  const std::vector<double> used = to_values(p->working);
  for (size_t i = 0; i < mean.size(); ++i) EXPECT_NEAR(used[i], mean[i], 1e-12);
}

TEST(Ema, GivesTheWeightsBackToTheBit) {
  for (const Dtype precision : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
    const auto a = example_store(precision), b = example_store(precision);
    const auto x = make_optimizer({.lr = 0.1, .ema = 0.9}, *a),
               y = make_optimizer({.lr = 0.1, .ema = 0.9}, *b);
    StepState s, t;
    train(*a, *x, s, 0, 3);
    train(*b, *y, t, 0, 3);
    {
      const AveragedWeights averaged(*a, *x);
      EXPECT_FALSE(same_weights(*a, *b));
      const ParameterEntry& e = *a->find("last");
      EXPECT_TRUE(same_bits(e.working, e.master.to(e.working.dtype())));
    }
    EXPECT_TRUE(same_weights(*a, *b));
    train(*a, *x, s, 3, 5);  // the mean came back too
    train(*b, *y, t, 3, 5);
    const AveragedWeights of_a(*a, *x), of_b(*b, *y);
    EXPECT_TRUE(same_weights(*a, *b));
  }
}

TEST(Ema, BeforeTheFirstUpdateIsTheWeights) {
  const auto store = example_store(Dtype::f32), fresh = example_store(Dtype::f32);
  const auto optimizer = make_optimizer({.ema = 0.9}, *store);
  const AveragedWeights averaged(*store, *optimizer);
  EXPECT_TRUE(same_weights(*store, *fresh));
}

TEST(Ema, WithoutOneNothingIsExchanged) {
  const auto store = example_store(Dtype::f32), fresh = example_store(Dtype::f32);
  const auto optimizer = make_optimizer({}, *store);
  const AveragedWeights averaged(*store, *optimizer);
  EXPECT_TRUE(same_weights(*store, *fresh));
}

}  // namespace
}  // namespace weft
