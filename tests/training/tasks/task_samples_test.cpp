// Tasks as samples of a data set.

#include "training/tasks/task_samples.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "autograd/check.h"

namespace weft {
namespace {

const Tokenizer& byte_tokenizer() {
  static const std::shared_ptr<const Tokenizer> tokenizer = load_tokenizer("byte");
  return *tokenizer;
}

std::shared_ptr<TaskSamples> samples_of(const std::vector<std::string>& texts, int64_t context, uint32_t seed,
                                        TaskSplit split) {
  std::vector<TaskText> parsed;
  for (const std::string& text : texts) parsed.push_back(TaskText::parse(text));
  return std::make_shared<TaskSamples>(parsed, byte_tokenizer(), context, seed, split);
}

TEST(TaskSamples, PackExamplesAsDocuments) {
  const auto maker = samples_of({"induction length=10"}, 64, 1, TaskSplit::train);
  const Dataset data(maker, 64);
  const std::vector<int64_t> which{5, 3};
  const Batch batch = data.batch(which);
  ASSERT_EQ(batch.tokens.size(), 128u);
  ASSERT_EQ(batch.targets.size(), 128u);
  EXPECT_EQ(batch.offsets,
            (std::vector<int64_t>{0, 10, 20, 30, 40, 50, 60, 64, 74, 84, 94, 104, 114, 124, 128}));
  EXPECT_EQ(batch.samples, which);
  EXPECT_EQ(maker->documents(), 7);
  for (size_t s = 0; s < 2; ++s) {
    for (int64_t place = 0; place < 6; ++place) {
      const Example e = maker->example(which[s], place);
      const auto begin = static_cast<int64_t>(s) * 64 + place * 10;
      EXPECT_TRUE(std::equal(e.tokens.begin(), e.tokens.end(), batch.tokens.begin() + begin));
      EXPECT_TRUE(std::equal(e.targets.begin(), e.targets.end(), batch.targets.begin() + begin));
    }
    for (size_t i = s * 64 + 60; i < s * 64 + 64; ++i) EXPECT_EQ(batch.targets[i], -1) << "what is left over";
  }
  EXPECT_EQ(std::count_if(batch.targets.begin(), batch.targets.end(), [](int32_t t) { return t >= 0; }), 12);
}

TEST(TaskSamples, ShorterExamplesLeaveRoom) {
  const Dataset data(samples_of({"listops length=32"}, 32, 1, TaskSplit::train), 32);
  std::vector<int64_t> which(40);
  std::iota(which.begin(), which.end(), 0);
  const Batch batch = data.batch(which);
  EXPECT_EQ(batch.tokens.size(), 40u * 32);
  EXPECT_EQ(std::count_if(batch.targets.begin(), batch.targets.end(), [](int32_t t) { return t >= 0; }), 40);
  EXPECT_EQ(batch.offsets.back(), 40 * 32);
  EXPECT_TRUE(std::is_sorted(batch.offsets.begin(), batch.offsets.end(), std::less_equal<>()));
}

// A step reads its samples in any number of pieces, on any ranks, after any restart.
TEST(TaskSamples, AreAFunctionOfSeedAndNumber) {
  const std::vector<std::string> texts{"mqar vocab=64 length=32 pairs=4 weight=3",
                                       "mqar vocab=64 length=64 pairs=8"};
  const Dataset one(samples_of(texts, 64, 9, TaskSplit::train), 64),
      two(samples_of(texts, 64, 9, TaskSplit::train), 64);
  EXPECT_EQ(one.order(9).step(7, 4), (std::vector<int64_t>{28, 29, 30, 31}));
  const std::vector<int64_t> all{28, 29, 30, 31}, last{30, 31};
  const Batch whole = one.batch(all), part = two.batch(last);
  EXPECT_TRUE(std::equal(part.tokens.begin(), part.tokens.end(), whole.tokens.begin() + 128));
  EXPECT_TRUE(std::equal(part.targets.begin(), part.targets.end(), whole.targets.begin() + 128));
  EXPECT_NE(Dataset(samples_of(texts, 64, 10, TaskSplit::train), 64).batch(all).tokens, whole.tokens);
}

TEST(TaskSamples, WeightsShareTheSamples) {
  const auto maker = samples_of({"mqar length=32 weight=3", "induction length=64"}, 64, 1, TaskSplit::train);
  int of[2] = {0, 0};
  for (int64_t number = 0; number < 2000; ++number) ++of[maker->task_of(number)];
  EXPECT_NEAR(of[0], 1500, 80);
  EXPECT_EQ(maker->vocab(), 8192) << "the larger of both";
}

// Not by luck: the draws differ for every seed and number. Induction of 15 symbols has room enough that equal
// examples would show a shared stream.
TEST(TaskSamples, HeldOutExamplesAreNeverTrainedOn) {
  std::set<std::vector<int32_t>> trained;
  for (const uint32_t seed : {1u, 2u, 3u}) {
    const auto maker = samples_of({"induction length=32"}, 32, seed, TaskSplit::train);
    for (int64_t number = 0; number < 1000; ++number) trained.insert(maker->example(number, 0).tokens);
  }
  EXPECT_EQ(trained.size(), 3000u);
  for (const uint32_t seed : {1u, 2u, 3u}) {
    const auto maker = samples_of({"induction length=32"}, 32, seed, TaskSplit::held_out);
    for (int64_t number = 0; number < 1000; ++number)
      ASSERT_FALSE(trained.count(maker->example(number, 0).tokens)) << seed << " " << number;
  }
}

TEST(TaskSamples, RefusesWhatDoesNotFit) {
  for (const auto& texts : {std::vector<std::string>{}, {"mqar length=128"}}) {
    try {
      samples_of(texts, 64, 1, TaskSplit::train);
      ADD_FAILURE();
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Exit::recipe);
    }
  }
}

}  // namespace
}  // namespace weft
