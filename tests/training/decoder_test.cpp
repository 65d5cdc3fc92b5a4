// Texts continued side by side: what the whole model says of them, and each as it would be alone. On the
// default device.

#include "training/decoder.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "training/generate.h"

namespace weft {
namespace {

using Prompts = std::vector<std::vector<int32_t>>;

struct Subject {
  explicit Subject(const std::vector<std::string>& layers, Dtype dtype = Dtype::f32, int64_t short_conv = 0)
      : store(dtype) {
    ModelConfig c;
    c.layers = layers;
    c.width = 32;
    c.heads = c.kv_heads = 2;
    c.head_size = 16;
    c.ffn = 48;
    c.vocab = 64;
    c.short_conv = short_conv;
    model = std::make_unique<Model>(c, store);
    store.commit();
  }
  ParameterStore store;
  std::unique_ptr<Model> model;
};

const Prompts kPrompts{{1, 2, 3, 4, 5, 6, 7}, {9}, {5, 5, 5, 8, 60, 2, 3, 1, 0, 7, 44, 21, 3, 3, 9, 10, 11}};

// The likeliest token behind every prefix of a text, by the whole model at once.
std::vector<int32_t> likeliest(const Model& model, const std::vector<int32_t>& text) {
  const NoTape pause;
  LocalCrossings crossings;
  const auto n = std::ssize(text);
  const Layout layout = whole_documents({n});
  const std::vector<double> z = to_values(model.logits(model.hidden(from_ints(text), layout, crossings)));
  const int64_t vocab = std::ssize(z) / n;
  std::vector<int32_t> best;
  for (int64_t t = 0; t < n; ++t) {
    const auto row = z.begin() + t * vocab;
    best.push_back(static_cast<int32_t>(std::max_element(row, row + vocab) - row));
  }
  return best;
}

class Decoding : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Mechanisms, Decoding,
                         testing::Values("softmax", "sliding_window", "linear", "lightning", "gla",
                                         "delta_rule", "gated_delta_rule", "regla", "based", "mega", "moh",
                                         "titans"));

TEST_P(Decoding, GreedyTakesWhatTheWholeModelSays) {
  const Subject s({GetParam(), "softmax"}, Dtype::f64, 3);
  for (const int64_t at_once : {1, 2, 3}) {
    Decoder decoder(*s.model, kPrompts, 12, {.temperature = 0}, 0, at_once);
    Prompts texts = kPrompts;
    const auto keep = [&] {
      const std::vector<int32_t> tokens = decoder.tokens();
      for (size_t i = 0; i < texts.size(); ++i) texts[i].push_back(tokens[i]);
    };
    keep();
    for (int step = 0; step < 12; ++step) {
      decoder.step({false, false, false});
      keep();
    }
    for (size_t i = 0; i < texts.size(); ++i) {
      const std::vector<int32_t> best = likeliest(*s.model, texts[i]);
      for (size_t t = kPrompts[i].size() - 1; t + 1 < texts[i].size(); ++t)
        EXPECT_EQ(texts[i][t + 1], best[t])
            << "text " << i << " behind token " << t << ", " << at_once << " at once";
    }
  }
}

// What a graph does is what its calls would have done one by one, to the last bit.
TEST(Decoder, ReplaysOnAGpuWhereNothingNeedsTheHost) {
  if (default_device() != Device::cuda) GTEST_SKIP() << "for a GPU";
  for (const auto& [layers, short_conv] : std::vector<std::pair<std::vector<std::string>, int64_t>>{
           {{"softmax", "lightning"}, 0}, {{"gla", "gated_delta_rule"}, 0}, {{"linear", "simple_gla"}, 4}}) {
    SCOPED_TRACE(layers[0] + ", " + layers[1]);
    const Subject s(layers, Dtype::bf16, short_conv);
    const DrawOptions draws = layers[0] == "gla" ? DrawOptions{.top_p = 0.9} : DrawOptions{.top_k = 20};
    Decoder decoder(*s.model, kPrompts, 40, draws),
        by_calls(*s.model, kPrompts, 40, draws, 0, 2);  // two groups, which are never recorded
    for (int step = 0; step < 40; ++step) {
      ASSERT_EQ(decoder.tokens(), by_calls.tokens()) << "behind step " << step;
      decoder.step({false, false, false});
      by_calls.step({false, false, false});
      if (step > 1) {
        EXPECT_TRUE(decoder.replays()) << "step " << step;
      }
    }
    EXPECT_FALSE(by_calls.replays());
  }
}

// The same where a window's kernel does not promise the bits of other groupings.
TEST(Decoder, ReplaysAWindow) {
  if (default_device() != Device::cuda) GTEST_SKIP() << "for a GPU";
  const Subject s({"sliding_window", "softmax"}, Dtype::f32, 4);
  Decoder decoder(*s.model, kPrompts, 30, {.temperature = 0});
  Prompts texts = kPrompts;
  for (int step = 0;; ++step) {
    const std::vector<int32_t> tokens = decoder.tokens();
    for (size_t i = 0; i < texts.size(); ++i) texts[i].push_back(tokens[i]);
    if (step == 30) break;
    decoder.step({false, false, false});
  }
  EXPECT_TRUE(decoder.replays());
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::vector<int32_t> best = likeliest(*s.model, texts[i]);
    for (size_t t = kPrompts[i].size() - 1; t + 1 < texts[i].size(); ++t)
      EXPECT_EQ(texts[i][t + 1], best[t]) << "text " << i << " behind token " << t;
  }
}

TEST(Decoder, ALongPromptIsReadInPieces) {
  const Subject s({"lightning", "softmax"}, Dtype::f64);
  std::vector<int32_t> prompt;
  for (int32_t i = 0; i < 4099; ++i) prompt.push_back(i * i % 61);
  Decoder decoder(*s.model, {prompt}, 1, {.temperature = 0});
  EXPECT_EQ(decoder.tokens()[0], likeliest(*s.model, prompt).back());
  prompt.push_back(decoder.tokens()[0]);
  decoder.step({false});
  EXPECT_EQ(decoder.tokens()[0], likeliest(*s.model, prompt).back());
  EXPECT_THROW(decoder.step({false}), Error) << "there is no room for more";
}

TEST(Generation, ATextDependsOnItsPromptAlone) {
  for (const std::string id : {"softmax", "gated_delta_rule", "sliding_window"}) {
    const bool gpu = default_device() == Device::cuda;  // of bf16 its products keep their bits
    if (gpu && id == "sliding_window") continue;        // but not the kernel of a window
    const Subject s({id, "lightning"}, gpu ? Dtype::bf16 : Dtype::f32, 2);
    const SamplingOptions options{.tokens = 30,
                                  .temperature = 1.5,
                                  .top_k = 0,
                                  .top_p = id == "softmax" ? 0.95 : 1,
                                  .seed = 5,
                                  .stop = 17};
    const Prompts together = generate(*s.model, kPrompts, options);
    for (size_t i = 0; i < kPrompts.size(); ++i) {
      EXPECT_EQ(generate(*s.model, {kPrompts[i]}, options)[0], together[i]) << id << ", prompt " << i;
      EXPECT_LE(together[i].size(), 30u);
      EXPECT_EQ(std::count(together[i].begin(), together[i].end(), 17), 0);
    }
    const Prompts same = generate(*s.model, {kPrompts[0], kPrompts[0]}, options);
    EXPECT_EQ(same[0], same[1]);
  }
}

TEST(Generation, EndsATextWhereItIsAskedTo) {
  const Subject s({"softmax"});
  std::vector<int> calls(3);
  const Prompts texts = generate(*s.model, kPrompts, {.tokens = 6},
                                 [&](size_t i, int32_t) { return ++calls[i] < static_cast<int>(i) + 1; });
  for (size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(texts[i].size(), i + 1);
  EXPECT_TRUE(generate(*s.model, {}, {.tokens = 6}).empty());
}

}  // namespace
}  // namespace weft
