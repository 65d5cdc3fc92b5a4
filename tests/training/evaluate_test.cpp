// What a model gets right, against a model made by hand that says every token again.

#include "training/evaluate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "distributed/thread_comm.h"
#include "training/recipe/load.h"
#include "training/trainer.h"

namespace weft {
namespace {

constexpr int64_t kVocab = 8;

// All that blocks add is 0, and the embedding is the unit matrix: the likeliest next token is the last one.
class Echo {
 public:
  explicit Echo(double diagonal = 1)
      : store_(Dtype::f32, Device::cpu),
        model_({.layers = {"softmax"},
                .width = kVocab,
                .heads = 2,
                .kv_heads = 2,
                .head_size = 4,
                .vocab = kVocab},
               store_) {
    store_.commit();
    for (const auto& e : store_.entries()) {
      const Tensor master = e->master;
      if (e->info.name.starts_with("blocks.")) master.copy_from(full(master.shape(), 0, Dtype::f32));
      if (e->info.name != "embedding.weight") continue;
      master.copy_from(full(master.shape(), 0, Dtype::f32));
      for (int64_t i = 0; i < kVocab; ++i)
        master.data<float>()[i * kVocab + i] = static_cast<float>(diagonal);
    }
    store_.refresh_working();
  }
  const Model& model() const { return model_; }

 private:
  ParameterStore store_;
  Model model_;
};

// Two samples of 6 tokens: documents of 3, 2 and 1 tokens, and one of 6.
Batch some_batch() {
  Batch b;
  b.tokens = {1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4};
  b.targets = {1, 2, 7, -1, 5, -1, 7, -1, 1, 2, 3, -1};
  b.offsets = {0, 3, 5, 6, 12};
  b.samples = {4, 9};
  return b;
}

void expect_counts(const Evaluation& e) {
  EXPECT_EQ(e.tokens, 8);
  EXPECT_EQ(e.examples, 3) << "the document of one token asks for nothing";
  EXPECT_DOUBLE_EQ(e.accuracy, 7.0 / 8) << "all but the 7 after 3";
  EXPECT_DOUBLE_EQ(e.exact, 2.0 / 3) << "all of the second and the last document";
}

TEST(Evaluator, CountsWhatIsRight) {
  const Echo echo;
  const Batch batch = some_batch();
  const std::vector<int64_t> numbers = document_numbers(batch, 6, 4);
  EXPECT_EQ(numbers, (std::vector<int64_t>{16, 17, 18, 36}));
  Evaluator evaluator(echo.model(), {.documents = 40});
  LocalCrossings crossings;
  const MicroBatch micro = cut_micro_batch(batch, SegmentPlan::contiguous, 1, 0, 1, Device::cpu);
  evaluator.add(micro, crossings, numbers);
  const Evaluation e = evaluator.finish();
  expect_counts(e);
  EXPECT_TRUE(std::isnan(e.bits_per_byte)) << "no text";

  // The logits are sqrt(8) for the token said again and 0 for seven others.
  const double right = std::log(std::exp(std::sqrt(8.0)) + 7) - std::sqrt(8.0),
               wrong = right + std::sqrt(8.0);
  EXPECT_NEAR(e.loss, (7 * right + wrong) / 8, 1e-5);
}

// The same batch over two ranks, which share its documents.
TEST(Evaluator, RanksCountTogether) {
  const Echo echo;
  const Batch batch = some_batch();
  run_ranks(2, [&](Communicator& ranks) {
    const MicroBatch micro = cut_micro_batch(batch, SegmentPlan::contiguous, 2, ranks.rank(), 1, Device::cpu);
    ASSERT_GT(micro.tokens.dim(0), 0);
    Evaluator evaluator(echo.model(), {.documents = 40});
    const auto crossings = crossings_of(micro, &ranks, CrossingStrategy::native);
    evaluator.add(micro, *crossings, document_numbers(batch, 6, 4));
    expect_counts(evaluator.finish(&ranks));
  });
}

TEST(Evaluator, NothingIsRightOfNaN) {
  const Echo echo(NAN);
  Evaluator evaluator(echo.model(), {.documents = 40});
  LocalCrossings crossings;
  Batch batch = some_batch();
  for (int32_t& t : batch.targets) t = t < 0 ? -1 : 0;
  evaluator.add(cut_micro_batch(batch, SegmentPlan::contiguous, 1, 0, 1, Device::cpu), crossings,
                document_numbers(batch, 6, 4));
  EXPECT_EQ(evaluator.finish().accuracy, 0);
}

TEST(Evaluator, TextByPosition) {
  const std::shared_ptr<const Tokenizer> bytes = load_tokenizer("byte");
  ParameterStore store(Dtype::f32, Device::cpu);
  const Model model({.layers = {"lightning"},
                     .width = 16,
                     .heads = 2,
                     .kv_heads = 2,
                     .head_size = 8,
                     .vocab = bytes->vocab_size()},
                    store);
  store.commit();
  Batch batch;
  for (int32_t i = 0; i < 20; ++i) {
    batch.tokens.push_back(97 + i);
    batch.targets.push_back(i == 19 ? -1 : i == 9 ? bytes->eos_id() : 98 + i);
  }
  batch.offsets = {0, 10, 20};
  batch.samples = {0};
  Evaluator evaluator(model, {.tokenizer = bytes.get(), .bucket = 4});
  LocalCrossings crossings;
  evaluator.add(cut_micro_batch(batch, SegmentPlan::contiguous, 1, 0, 1, Device::cpu), crossings);
  const Evaluation all = evaluator.finish();
  const std::vector<Evaluation> buckets = evaluator.buckets();
  ASSERT_EQ(buckets.size(), 3u);
  EXPECT_EQ(buckets[0].tokens, 8) << "positions 0 to 3 of both documents";
  EXPECT_EQ(buckets[2].tokens, 3) << "8 and 9, but for the last label";
  EXPECT_EQ(all.tokens, 19);
  double nats = 0;
  for (const Evaluation& b : buckets) nats += b.loss * static_cast<double>(b.tokens);
  EXPECT_NEAR(nats / 19, all.loss, 1e-9);
  EXPECT_NEAR(buckets[1].bits_per_byte, buckets[1].loss / std::log(2.0), 1e-9) << "a byte a token";
  EXPECT_TRUE(std::isnan(all.accuracy));
}

TEST(Evaluator, NoLabelIsNoLoss) {
  const Echo echo;
  Batch batch = some_batch();
  batch.targets.assign(batch.targets.size(), -1);
  Evaluator evaluator(echo.model(), {});
  LocalCrossings crossings;
  evaluator.add(cut_micro_batch(batch, SegmentPlan::contiguous, 1, 0, 1, Device::cpu), crossings);
  EXPECT_EQ(evaluator.finish().tokens, 0);
  EXPECT_TRUE(std::isnan(evaluator.finish().loss));
}

// A model of one softmax layer after another learns to look for what followed: far above 1 of 4.
TEST(Learning, SoftmaxLearnsInduction) {
  const Recipe recipe = parse_recipe(
      "{data: {task: induction length=12 symbols=4}, batch_tokens: 1536, context: 96, precision: f32, steps: "
      "200, "
      "model: {layers: [softmax*2], width: 32, heads: 2, ffn: 64}, optim: {lr: 0.01, warmup: 20}}",
      "test");
  const std::shared_ptr<const Tokenizer> tokenizer = open_tokenizer(recipe);
  Trainer trainer(recipe, *tokenizer, nullptr);
  const Datasets data = open_recipe_data(recipe, *tokenizer, vocabulary_of(recipe, *tokenizer));
  EXPECT_LT(trainer.evaluate(*data.val, 32)->accuracy, 0.4);
  const SampleOrder order = data.train.order(1);
  for (int64_t step = 0; step < recipe.steps; ++step)
    trainer.step(step, data.train.batch(order.step(step, trainer.samples_per_step())));
  const Evaluation after = *trainer.evaluate(*data.val, 32);
  EXPECT_EQ(after.examples, 32 * 8);
  EXPECT_GT(after.accuracy, 0.6);
  EXPECT_EQ(after.accuracy, after.exact) << "one label an example";
}

}  // namespace
}  // namespace weft
