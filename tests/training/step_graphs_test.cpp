// Training steps as CUDA graphs: which are kept, and on a GPU that they change no bit.

#include "training/step_graphs.h"

#include <gtest/gtest.h>

#include <optional>

#include "autograd/notes.h"
#include "tests/autograd/test_tensors.h"
#include "tests/tolerances.h"
#include "training/generate.h"
#include "training/least_recent.h"
#include "training/recipe/load.h"
#include "training/trainer.h"

namespace weft {
namespace {

TEST(LeastRecent, TheOneNotAskedForLongestGoes) {
  LeastRecent<int, std::string> kept(3);
  for (const int key : {1, 2, 3}) kept.insert(key) = std::to_string(key);
  EXPECT_TRUE(kept.full());
  ASSERT_NE(kept.find(1), nullptr);  // now 2 is the oldest
  kept.insert(4) = "4";
  EXPECT_EQ(kept.find(2), nullptr);
  for (const int key : {1, 3, 4}) {
    ASSERT_NE(kept.find(key), nullptr) << key;
    EXPECT_EQ(*kept.find(key), std::to_string(key));
  }
  EXPECT_EQ(kept.size(), 3u);
  kept.clear();
  EXPECT_EQ(kept.find(1), nullptr);
  kept.insert(1);
  EXPECT_FALSE(kept.full());
}

TEST(RoundedBounds, EqualDocumentsStayAndOthersShareABucket) {
  const auto of = [](const std::vector<int64_t>& lengths) {
    const DocumentBounds b = rounded_bounds(whole_documents(lengths).segments);
    return std::pair(int64_t{b.documents}, b.longest);
  };
  EXPECT_EQ(of({96, 96, 96}), std::pair(int64_t{3}, int64_t{96}));
  EXPECT_EQ(of({5, 100, 407}), std::pair(int64_t{4}, int64_t{512}));
  EXPECT_EQ(of({300, 200, 5, 7}), of({5, 100, 407}));
  EXPECT_EQ(of({1, 2}), std::pair(int64_t{2}, int64_t{128}));
  EXPECT_EQ(of({1, 2, 3, 4, 5}), std::pair(int64_t{8}, int64_t{128}));
}

TEST(BoundsScope, IsOfItsLayoutAlone) {
  const Layout layout = whole_documents({3, 4}), other = whole_documents({5});
  const Tensor offsets = from_ints({0, 3, 7, 7, 7});
  {
    const BoundsScope scope(layout, {4, 128}, offsets);
    const Layout copy = layout;
    EXPECT_EQ(bounds_of(copy).documents, 4);
    EXPECT_EQ(bounds_of(copy).longest, 128);
    EXPECT_EQ(offsets_of(copy).raw(), offsets.raw());
    EXPECT_EQ(bounds_of(other).documents, 1);
    EXPECT_FALSE(offsets_of(other).defined());
  }
  EXPECT_EQ(bounds_of(layout).documents, 2);
  EXPECT_EQ(bounds_of(layout).longest, 4);
  EXPECT_FALSE(offsets_of(layout).defined());
}

constexpr int64_t kContext = 256, kTokens = 1024;

// Samples of whole documents, as a corpus packs them; step 0: one document each.
Batch packed(uint32_t step) {
  Batch b;
  const RandomKey random{7, 1, step};
  uint64_t draws = 0;
  for (int64_t i = 0; i < kTokens; ++i) {
    b.tokens.push_back(static_cast<int32_t>(random.draw(static_cast<uint64_t>(i), 1)[0] % 250));
    b.targets.push_back((b.tokens.back() + 1) % 250);
  }
  for (int64_t sample = 0; sample < kTokens; sample += kContext) {
    b.samples.push_back(sample / kContext);
    for (int64_t at = sample; at < sample + kContext;) {
      b.offsets.push_back(at);
      at += step == 0 ? kContext : 1 + static_cast<int64_t>(random.uniform(draws++) * 200);
    }
  }
  b.offsets.push_back(kTokens);
  for (size_t d = 1; d < b.offsets.size(); ++d) b.targets[static_cast<size_t>(b.offsets[d] - 1)] = -1;
  return b;
}

class StepGraphsTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (default_device() != Device::cuda) GTEST_SKIP() << "needs a GPU: WEFT_DEVICE=cuda";
  }
  Recipe recipe(const std::string& precision, int64_t graphs, const std::string& more = "") const {
    std::vector<std::string> words{std::string("model.layers=[") + GetParam() + "]", "precision=" + precision,
                                   "cuda_graphs=" + std::to_string(graphs)};
    if (!more.empty()) words.push_back(more);
    return parse_recipe(
        "{batch_tokens: 1024, context: 256, micro_tokens: 512, optim: {warmup: 0, schedule: "
        "constant}, model: {width: 128, heads: 2}}",
        "test", words);
  }
  // Twelve steps: equal documents, and packs of two buckets or so, each of which comes again.
  static std::vector<StepResult> train(Trainer& trainer) {
    std::vector<StepResult> results;
    for (const uint32_t pack : {0, 1, 2, 0, 3, 4, 0, 5, 6, 1, 0, 7})
      results.push_back(trainer.step(std::ssize(results), packed(pack)));
    return results;
  }
};

void expect_same(Trainer& a, Trainer& b, const std::vector<StepResult>& of_a,
                 const std::vector<StepResult>& of_b, double flops = 1e-9) {
  for (size_t i = 0; i < of_a.size(); ++i) {
    EXPECT_EQ(of_a[i].loss, of_b[i].loss) << "step " << i;
    EXPECT_EQ(of_a[i].grad_norm, of_b[i].grad_norm) << "step " << i;
  }
  EXPECT_NEAR(a.step_flops(), b.step_flops(), flops * a.step_flops());
  for (size_t g = 0; g < a.store().groups().size(); ++g)
    EXPECT_TRUE(same_bits(a.store().groups()[g].master, b.store().groups()[g].master)) << "group " << g;
}

TEST_P(StepGraphsTest, ChangeNoBit) {
  for (const char* precision : {"bf16", "f32"}) {
    const Recipe eager = recipe(precision, 0), graphs = recipe(precision, 32);
    const auto tokenizer = open_tokenizer(eager);
    Trainer a(eager, *tokenizer, nullptr), b(graphs, *tokenizer, nullptr);
    const std::vector<StepResult> of_a = train(a), of_b = train(b);
    EXPECT_EQ(a.graphs().recorded(), 0);
    EXPECT_GE(b.graphs().replayed(), 10) << precision;
    EXPECT_LE(b.graphs().recorded(), 16) << precision;
    expect_same(a, b, of_a, of_b);
  }
}

TEST_P(StepGraphsTest, NorWhenFewAreKeptOrTextIsWrittenInBetween) {
  const Recipe eager = recipe("bf16", 0), graphs = recipe("bf16", 2);
  const auto tokenizer = open_tokenizer(eager);
  Trainer a(eager, *tokenizer, nullptr), b(graphs, *tokenizer, nullptr);
  std::vector<StepResult> of_a = train(a), of_b = train(b);
  const std::vector<std::vector<int32_t>> prompts{{1, 2, 3}, {4}};
  EXPECT_EQ(generate(a.model(), prompts, {.tokens = 20}), generate(b.model(), prompts, {.tokens = 20}));
  for (const StepResult& r : train(a)) of_a.push_back(r);
  for (const StepResult& r : train(b)) of_b.push_back(r);
  expect_same(a, b, of_a, of_b);
}

TEST_P(StepGraphsTest, TakeNoMoreMemory) {
  int64_t peak[2] = {};
  for (const int64_t graphs : {0, 32}) {
    const Recipe r = recipe("bf16", graphs);
    const auto tokenizer = open_tokenizer(r);
    const int64_t before = memory_report(Device::cuda).bytes;
    reset_peak(Device::cuda);
    Trainer trainer(r, *tokenizer, nullptr);
    train(trainer);
    peak[graphs > 0] = memory_report(Device::cuda).peak_bytes - before;
  }
  EXPECT_NEAR(static_cast<double>(peak[1]), static_cast<double>(peak[0]),
              0.02 * static_cast<double>(peak[0]));
}

TEST_P(StepGraphsTest, RoundedBoundsChangeNothingButTheOrderOfSums) {
  const Recipe r = recipe("bf16", 0);
  const auto tokenizer = open_tokenizer(r);
  Trainer trainer(r, *tokenizer, nullptr);
  for (const uint32_t pack : {1, 2, 3}) {
    std::vector<Tensor> hidden, gradient;
    for (const bool rounded : {false, true}) {
      const MicroBatch micro = cut_micro_batch(packed(pack), SegmentPlan::contiguous, 1, 0, 1, Device::cuda);
      ASSERT_GE(micro.bounds.documents, std::ssize(micro.layout.segments));
      std::optional<BoundsScope> bounds;
      if (rounded) bounds.emplace(micro.layout, micro.bounds, micro.offsets);
      LocalCrossings crossings;
      Tape tape;
      trainer.store().begin_step();
      const Variable h = trainer.model().hidden(micro.tokens, micro.layout, crossings);
      tape.backward(h, full(h.shape(), 0.01, h.dtype()));
      hidden.push_back(h.value());
      const Tensor& g = trainer.store().groups()[0].gradient;
      gradient.push_back(empty_like(g));
      gradient.back().copy_from(g);
    }
    EXPECT_LE(norm_difference(hidden[1], hidden[0]), tolerance::kBf16Norm) << "pack " << pack;
    EXPECT_LE(norm_difference(gradient[1], gradient[0]), tolerance::kBf16Norm) << "pack " << pack;
  }
}

// Samples of other documents each.
class MadePacks : public SampleMaker {
 public:
  void append(int64_t number, Batch& batch) const override {
    const RandomKey random{11, 2, static_cast<uint32_t>(number)};
    uint64_t draws = 0;
    for (int64_t left = kContext, length = 0; left > 0; left -= length) {
      length = std::min(left, 16 + static_cast<int64_t>(random.uniform(draws++) * 100));
      for (int64_t i = 0; i < length; ++i) {
        batch.tokens.push_back(static_cast<int32_t>((number + i) % 250));
        batch.targets.push_back(i + 1 < length ? static_cast<int32_t>((number + i + 1) % 250) : -1);
      }
      batch.offsets.push_back(std::ssize(batch.tokens));
    }
  }
  int64_t documents() const override { return kContext / 16; }
};

TEST_P(StepGraphsTest, StayWhileOtherDocumentsAreEvaluated) {
  const Recipe r = recipe("bf16", 32);
  const auto tokenizer = open_tokenizer(r);
  Trainer trainer(r, *tokenizer, nullptr);
  const Dataset held_out(std::make_shared<MadePacks>(), kContext);
  int64_t steps = 0;
  // Graphs replayed in three steps.
  const auto replays = [&](bool evaluated) {
    const int64_t before = trainer.graphs().replayed();
    for (int i = 0; i < 3; ++i) {
      trainer.step(steps++, packed(0));
      if (evaluated) trainer.evaluate(held_out, 4);
    }
    return trainer.graphs().replayed() - before;
  };
  replays(true);  // what is kept for ever is made
  const int64_t recorded = trainer.graphs().recorded(), alone = replays(false);
  EXPECT_GE(alone, 3);  // the update, and two micro-batches where nothing of them is listed by the host
  EXPECT_EQ(replays(true), alone);
  EXPECT_EQ(trainer.graphs().recorded(), recorded);
}

INSTANTIATE_TEST_SUITE_P(Layers, StepGraphsTest,
                         testing::Values("softmax*2", "lightning*2", "lightning,softmax", "gla*2",
                                         "gated_delta_rule*2", "transnormer_llm*2"));

// Whatever becomes of them: lists that the host makes are found out, and the bits are right.
using OtherLayers = StepGraphsTest;
TEST_P(OtherLayers, ChangeNoBitEither) {
  const Recipe eager = recipe("bf16", 0), graphs = recipe("bf16", 32);
  const auto tokenizer = open_tokenizer(eager);
  Trainer a(eager, *tokenizer, nullptr), b(graphs, *tokenizer, nullptr);
  const std::vector<StepResult> of_a = train(a), of_b = train(b);
  expect_same(a, b, of_a, of_b, 0.02);  // of a window as it was when it was recorded
  if (std::string(GetParam()) == "mega*2" || std::string(GetParam()) == "titans*2") {
    EXPECT_LT(b.graphs().replayed(), 12);  // the optimizer's update alone, once a step
  }
}
INSTANTIATE_TEST_SUITE_P(Layers, OtherLayers,
                         testing::Values("mega*2", "titans*2", "based*2", "sliding_window*2", "moh*2",
                                         "sparsek*2"));

}  // namespace
}  // namespace weft
