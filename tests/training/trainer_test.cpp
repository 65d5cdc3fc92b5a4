// The trainer alone: batches that hardly say anything.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "autograd/determinism.h"
#include "autograd/flops.h"
#include "training/recipe/load.h"
#include "training/trainer.h"

namespace weft {
namespace {

class TrainerTest : public testing::TestWithParam<const char*> {
 protected:
  TrainerTest()
      : recipe_(parse_recipe("{batch_tokens: 64, context: 16, precision: f64, micro_tokens: 32, optim: "
                             "{warmup: 0, schedule: constant}, "
                             "model: {width: 16, heads: 2}}",
                             "test", {std::string("model.layers=[") + GetParam() + "]"})),
        tokenizer_(open_tokenizer(recipe_)),
        trainer_(recipe_, *tokenizer_, nullptr) {}

  Batch batch(int64_t document) const {
    Batch b;
    for (int64_t i = 0; i < 64; ++i) {
      b.tokens.push_back(static_cast<int32_t>(i * 7 % 50 + 40));
      b.targets.push_back(static_cast<int32_t>((i + 1) * 7 % 50 + 40));
      if (i % document == 0) b.offsets.push_back(i);
      if ((i + 1) % document == 0) b.targets.back() = -1;
    }
    b.offsets.push_back(64);
    b.samples = {0, 1, 2, 3};
    return b;
  }

  std::vector<double> weights() {
    std::vector<double> all;
    for (const auto& e : trainer_.store().entries()) {
      const auto values = to_values(e->master);
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  }

  Recipe recipe_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  Trainer trainer_;
};

TEST_P(TrainerTest, DeterminismOfTheRecipeReachesKernels) {
  EXPECT_TRUE(deterministic());  // by default
  Recipe fastest = recipe_;
  fastest.determinism = "off";
  const Trainer other(fastest, *tokenizer_, nullptr);
  EXPECT_FALSE(deterministic());
  set_deterministic(true);
}

TEST_P(TrainerTest, NoLabelAtAll) {
  Batch empty = batch(16);
  empty.targets.assign(64, -1);
  const StepResult nothing = trainer_.step(0, empty);
  EXPECT_EQ(nothing.loss, 0);
  EXPECT_EQ(nothing.grad_norm, 0);
  EXPECT_EQ(nothing.labels, 0);
  for (const double w : weights()) ASSERT_TRUE(std::isfinite(w));
  const StepResult next = trainer_.step(1, batch(16));
  EXPECT_TRUE(next.applied);
  EXPECT_GT(next.grad_norm, 0);
  EXPECT_EQ(next.labels, 60);
}

TEST_P(TrainerTest, DocumentsOfOneToken) {
  Batch single = batch(1);
  EXPECT_EQ(single.offsets.size(), 65u);
  const StepResult none = trainer_.step(0, single);
  EXPECT_EQ(none.loss, 0);
  // With labels all the same: a token that sees itself alone.
  single.targets.assign(64, 50);
  const StepResult result = trainer_.step(1, single);
  EXPECT_TRUE(std::isfinite(result.loss) && std::isfinite(result.grad_norm));
  EXPECT_GT(result.loss, 1);
  for (const double w : weights()) ASSERT_TRUE(std::isfinite(w));
}

// Documents decide how many pairs attention sees, so a plan has to know them.
TEST_P(TrainerTest, APlanCountsTheOperationsOfTheStep) {
  Trainer plan(recipe_, *tokenizer_, nullptr, Device::meta);
  double lengthy = 0;
  for (const int64_t document : {16, 4}) {
    trainer_.step(0, batch(document));
    plan.step(0, batch(document));
    EXPECT_GT(plan.step_flops(), 0);
    EXPECT_EQ(plan.step_flops(), trainer_.step_flops()) << document;
    if (document == 16) lengthy = plan.step_flops();
  }
  if (std::string(GetParam()) == "softmax") {
    EXPECT_LT(plan.step_flops(), lengthy);
  }
}

TEST_P(TrainerTest, WhatRunsAgainIsNoWorkOfTheModel) {
  Recipe recipe = recipe_;
  recipe.model.checkpointing = "block";
  Trainer plain(recipe_, *tokenizer_, nullptr, Device::meta);
  Trainer again(recipe, *tokenizer_, nullptr, Device::meta);
  plain.step(0, batch(16));
  again.step(0, batch(16));
  EXPECT_EQ(plain.model_flops(), plain.step_flops());
  EXPECT_EQ(again.model_flops(), plain.model_flops());
  // The way there of the layers, no more and no less.
  const MicroBatch micro = cut_micro_batch(batch(16), SegmentPlan::contiguous, 1, 0, 1, Device::cpu);
  const double before = counted_flops();
  trainer_.model().hidden(micro.tokens, micro.layout,
                          *crossings_of(micro, nullptr, CrossingStrategy::native));
  EXPECT_DOUBLE_EQ(again.step_flops() - again.model_flops(), counted_flops() - before);
}

// One micro-batch has no label, the others carry on.
TEST_P(TrainerTest, LossIsTheMeanOverLabels) {
  Batch half = batch(16);
  std::fill(half.targets.begin(), half.targets.begin() + 32, -1);
  Batch second = half;
  std::copy(half.tokens.begin() + 32, half.tokens.end(), second.tokens.begin());
  std::copy(half.targets.begin() + 32, half.targets.end(), second.targets.begin());
  std::fill(second.targets.begin() + 32, second.targets.end(), -1);
  Trainer other(recipe_, *tokenizer_, nullptr);
  const StepResult a = trainer_.step(0, half), b = other.step(0, second);
  EXPECT_EQ(a.labels, 30);
  EXPECT_NEAR(a.loss, b.loss, 1e-12 * a.loss);
  EXPECT_NEAR(a.grad_norm, b.grad_norm, 1e-10 * a.grad_norm);
}

TEST_P(TrainerTest, MicroBatchesDoNotMatter) {
  Recipe one = recipe_;
  one.micro_tokens = 64;
  Trainer other(one, *tokenizer_, nullptr);
  for (int step = 0; step < 3; ++step) {
    const StepResult a = trainer_.step(step, batch(8)), b = other.step(step, batch(8));
    EXPECT_NEAR(a.loss, b.loss, 1e-9 * b.loss);
    EXPECT_NEAR(a.grad_norm, b.grad_norm, 1e-8 * b.grad_norm);
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, TrainerTest,
                         testing::Values("softmax", "lightning", "delta_rule", "based", "sliding_window",
                                         "simple_gla", "gated_delta_rule", "transnormer_llm"));

TEST(ModelConfig, TakesAttributesUnderOneName) {
  const Recipe twice = parse_recipe(
      "{model: {layers: [lightning], mechanisms: {lightning: {chunk: 8}, retention: {chunk: 16}}}}", "r.yaml",
      {});
  try {
    model_config(twice, 10);
    ADD_FAILURE() << "one of the two would be left out in silence";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Exit::recipe);
    EXPECT_STREQ(e.what(), "lightning and retention are the same mechanism");
    EXPECT_EQ(e.where.find("r.yaml:1:"), 0u) << e.where;
  }
}

}  // namespace
}  // namespace weft
