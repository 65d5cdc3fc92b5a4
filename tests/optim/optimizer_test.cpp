#include "optim/optimizer.h"

#include <omp.h>

#include "tests/optim/example_store.h"

namespace weft {
namespace {

OptimizerConfig everything(const std::string& kind) {
  return {.kind = kind, .lr = 0.01, .clip = 1, .ema = 0.9};
}

class OptimizerTest : public testing::TestWithParam<std::tuple<std::string, Dtype>> {
 protected:
  std::string kind() const { return std::get<0>(GetParam()); }
  Dtype precision() const { return std::get<1>(GetParam()); }
};

TEST_P(OptimizerTest, ASkippedStepChangesNoBit) {
  const auto a = example_store(precision()), b = example_store(precision());
  const auto x = make_optimizer(everything(kind()), *a), y = make_optimizer(everything(kind()), *b);
  StepState s, t;
  train(*a, *x, s, 0, 2);
  train(*b, *y, t, 0, 2);
  draw_gradients(*a, 2, NAN);
  s.skip = true;
  x->step(s);
  s.skip = false;
  EXPECT_TRUE(same_weights(*a, *b));
  EXPECT_EQ(s.updates, 2);
  train(*a, *x, s, 3, 5);
  train(*b, *y, t, 3, 5);
  EXPECT_TRUE(same_weights(*a, *b));
}

TEST_P(OptimizerTest, RestoredStateGoesOnWithTheSameBits) {
  const auto a = example_store(precision()), b = example_store(precision());
  const auto x = make_optimizer(everything(kind()), *a);
  StepState s;
  train(*a, *x, s, 0, 4);

  const auto y = make_optimizer(everything(kind()), *b);
  StepState t;
  t.updates = s.updates;
  for (size_t i = 0; i < a->groups().size(); ++i) b->groups()[i].master.copy_from(a->groups()[i].master);
  b->refresh_working();
  const std::vector<StateTensor> saved = x->state(), loaded = y->state();
  ASSERT_EQ(saved.size(), loaded.size());
  for (size_t i = 0; i < saved.size(); ++i) {
    EXPECT_EQ(saved[i].name, loaded[i].name);
    EXPECT_EQ(saved[i].range, loaded[i].range);
    loaded[i].values.copy_from(saved[i].values);
  }
  train(*a, *x, s, 4, 8);
  train(*b, *y, t, 4, 8);
  EXPECT_TRUE(same_weights(*a, *b));
  for (size_t i = 0; i < saved.size(); ++i) EXPECT_TRUE(same_bits(saved[i].values, loaded[i].values));
}

TEST_P(OptimizerTest, ThreadsDoNotChangeBits) {
  const int before = omp_get_max_threads();
  const auto run = [&](int threads) {
    omp_set_num_threads(threads);
    auto store = example_store(precision(), true);
    const auto optimizer = make_optimizer(everything(kind()), *store);
    StepState s;
    train(*store, *optimizer, s, 0, 2);
    return store;
  };
  const auto one = run(1);
  for (const int threads : {2, 5}) EXPECT_TRUE(same_weights(*one, *run(threads))) << threads;
  omp_set_num_threads(before);
}

TEST_P(OptimizerTest, PartitionedRanksTogetherAreOne) {
  const auto a = example_store(precision());
  const auto x = make_optimizer(everything(kind()), *a);
  StepState s;
  train(*a, *x, s, 0, 3);

  const auto b = example_store(precision());
  std::vector<std::unique_ptr<Optimizer>> ranks;
  int64_t elements = 0, whole_elements = 0;
  for (int64_t rank = 0; rank < 3; ++rank) {
    ranks.push_back(make_optimizer(everything(kind()), *b, partition(*b, 3, rank, kind() == "muon")));
    for (const StateTensor& t : ranks.back()->state()) elements += t.values.numel();
  }
  for (const StateTensor& t : x->state()) whole_elements += t.values.numel();
  EXPECT_EQ(elements, whole_elements);
  std::vector<StepState> states(3);
  for (uint32_t step = 0; step < 3; ++step)
    for (size_t rank = 0; rank < 3; ++rank) train(*b, *ranks[rank], states[rank], step, step + 1);
  for (size_t i = 0; i < a->entries().size(); ++i)
    EXPECT_LE(difference(b->entries()[i]->master, a->entries()[i]->master), 1e-6);
}

INSTANTIATE_TEST_SUITE_P(Kinds, OptimizerTest,
                         testing::Combine(testing::Values("adamw", "muon"),
                                          testing::Values(Dtype::f64, Dtype::f32, Dtype::bf16)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" + name_of(std::get<1>(info.param));
                         });

TEST(Optimizer, StateIsNamed) {
  const auto store = example_store(Dtype::bf16);
  const auto names = [&](const OptimizerConfig& config) {
    std::string all;
    for (const StateTensor& t : make_optimizer(config, *store)->state()) {
      all += t.name + " ";
      EXPECT_EQ(t.values.dtype(), Dtype::f32);
      EXPECT_EQ(t.values.numel(), t.range.size());
    }
    return all;
  };
  // Groups: matrices, embeddings, vectors.
  EXPECT_EQ(names({.kind = "adamw"}), "adamw.m adamw.m adamw.m adamw.v adamw.v adamw.v ");
  EXPECT_EQ(names({.kind = "muon", .ema = 0.5}),
            "muon.momentum adamw.m adamw.m adamw.v adamw.v ema ema ema ");
}

TEST(Optimizer, MuonMovesMatricesAndAdamWTheRest) {
  const auto muon = example_store(Dtype::f32), adamw = example_store(Dtype::f32);
  const auto x = make_optimizer({.kind = "muon"}, *muon), y = make_optimizer({.kind = "adamw"}, *adamw);
  StepState s, t;
  train(*muon, *x, s, 0, 2);
  train(*adamw, *y, t, 0, 2);
  for (size_t i = 0; i < muon->entries().size(); ++i) {
    const ParameterEntry &a = *muon->entries()[i], &b = *adamw->entries()[i];
    const bool moved_alike = a.info.kind != ParameterKind::matrix || !a.info.trainable;
    EXPECT_EQ(same_bits(a.master, b.master), moved_alike) << a.info.name;
  }
}

TEST(Optimizer, FrozenParametersStay) {
  const auto store = example_store(Dtype::f32), fresh = example_store(Dtype::f32);
  StepState s;
  train(*store, *make_optimizer({}, *store), s, 0, 2);
  EXPECT_TRUE(same_bits(store->find("frozen")->master, fresh->find("frozen")->master));
}

TEST(Optimizer, ClippingIsAFactorOfTheGradient) {
  // A gradient of norm 8 clipped to 2 moves the weights as a quarter of it does.
  const auto a = example_store(Dtype::f64), b = example_store(Dtype::f64);
  OptimizerConfig config{.lr = 0.1, .eps = 1};  // such an eps makes the size of the gradient matter
  config.clip = 2;
  const auto x = make_optimizer(config, *a);
  config.clip = 0;
  const auto y = make_optimizer(config, *b);
  StepState s, t;
  for (uint32_t step = 0; step < 3; ++step) {
    draw_gradients(*a, step);
    draw_gradients(*b, step, 0.25);
    s.gradient_norm = 8;
    x->step(s);
    y->step(t);
    EXPECT_EQ(s.clip, 0.25);
  }
  for (size_t i = 0; i < a->entries().size(); ++i)
    EXPECT_LE(difference(a->entries()[i]->master, b->entries()[i]->master), 1e-7);
  s.gradient_norm = 1.5;
  x->step(s);
  EXPECT_EQ(s.clip, 1);
}

TEST(Optimizer, UpdatesByRangeEqualAStep) {
  const auto a = example_store(Dtype::f32), b = example_store(Dtype::f32);
  const auto x = make_optimizer({}, *a), y = make_optimizer({}, *b);
  StepState s, t;
  draw_gradients(*a, 1);
  draw_gradients(*b, 1);
  x->step(s);
  y->begin(t);
  for (const Range& r : y->owned()) {
    const int64_t middle = r.begin + r.size() / 32 * 16;
    y->update({r.group, middle, r.end}, t);
    y->update({r.group, r.begin, middle}, t);
  }
  for (size_t i = 0; i < a->entries().size(); ++i)
    EXPECT_LE(difference(b->entries()[i]->master, a->entries()[i]->master), 1e-7);
}

TEST(Optimizer, RefusesRangesItDoesNotOwn) {
  const auto store = example_store(Dtype::f32);
  const auto optimizer = make_optimizer({}, *store, {{0, 0, 64}});
  StepState s;
  optimizer->begin(s);
  EXPECT_NO_THROW(optimizer->update({0, 16, 64}, s));
  EXPECT_THROW(optimizer->update({0, 16, 80}, s), Error);
  EXPECT_THROW(optimizer->update({1, 0, 16}, s), Error);
}

TEST(Optimizer, UnknownKindIsARecipeError) {
  const auto store = example_store(Dtype::f32);
  try {
    make_optimizer({.kind = "adam"}, *store);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Exit::recipe);
    EXPECT_EQ(e.where, "optim.kind");
  }
}

TEST(Optimizer, RunsOnMeta) {
  for (const char* kind : {"adamw", "muon"}) {
    const auto store = example_store(Dtype::bf16, false, Device::meta);
    const auto optimizer = make_optimizer(everything(kind), *store);
    StepState s;
    EXPECT_NO_THROW(optimizer->step(s));
    EXPECT_EQ(s.updates, 1);
  }
}

}  // namespace
}  // namespace weft
