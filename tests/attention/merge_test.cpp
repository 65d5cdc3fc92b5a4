// What the options of a Merge mean, by double loops, and what decoding keeps of one.

#include "attention/merge.h"

#include <algorithm>

#include "attention/crossing.h"
#include "attention/flash_attention.h"
#include "autograd/ops/arrange.h"
#include "tests/autograd/test_tensors.h"

namespace weft {
namespace {

constexpr int64_t kHeads = 4, kGroups = 2, kKey = 3, kValue = 5, kReach = 9;

struct Setting {
  const char* name;
  AttentionOptions options;
  bool bias = false;
};
const std::vector<Setting> settings{
    {"softmax", {.scale = 0.7}},
    {"softmax, not causal, window", {.scale = 0.7, .causal = false, .window = 6}},
    {"softmax, block", {.scale = 0.7, .block = 10}},
    {"softmax, block, not causal", {.scale = 0.7, .causal = false, .block = 70}},
    {"softmax, bias", {.scale = 0.7}, true},
    {"softmax, bias, not causal", {.scale = 0.7, .causal = false}, true},
    {"laplace, block, bias, not causal",
     {.scale = 0.7, .causal = false, .block = 10, .weighting = Weighting::laplace},
     true},
    {"laplace", {.scale = 0.7, .weighting = Weighting::laplace}},
    {"laplace, alibi, bias", {.scale = 0.7, .alibi = true, .weighting = Weighting::laplace}, true},
    {"laplace, block, bias", {.scale = 0.7, .block = 64, .weighting = Weighting::laplace}, true},
    {"relu2", {.scale = 0.7, .weighting = Weighting::relu2}},
    {"relu2, window, bias", {.scale = 0.7, .window = 7, .weighting = Weighting::relu2}, true},
};

struct MergeCase {
  explicit MergeCase(const std::vector<int64_t>& lengths) : layout(whole_documents(lengths)) {
    const int64_t n = layout.tokens();
    inputs = {random_tensor({n, kHeads, kKey}, 1), random_tensor({n, kGroups, kKey}, 2),
              random_tensor({n, kGroups, kValue}, 3), random_tensor({kHeads, kReach}, 4)};
  }
  Layout layout;
  std::vector<Tensor> inputs;  // q, k, v, bias
};

Merge part_of(const Setting& s, const Variable& bias) {
  Merge part{s.options, flash_attention_forward, flash_attention_backward};
  if (s.bias) part.bias = bias;
  return part;
}

double weight(Weighting f, double s) {
  switch (f) {
    case Weighting::softmax: return std::exp(s);
    case Weighting::laplace: return 0.5 * (1 + std::erf((s - std::sqrt(0.5)) / std::sqrt(0.5 / M_PI)));
    case Weighting::relu2: return s > 0 ? s * s : 0;
  }
  return 0;
}

TEST(MergeOptions, AgainstTheDefinition) {
  const MergeCase c({70, 1, 90});
  const std::vector<double> q = to_values(c.inputs[0]), k = to_values(c.inputs[1]),
                            v = to_values(c.inputs[2]), bias = to_values(c.inputs[3]),
                            at = to_values(c.layout.position), of = to_values(c.layout.document);
  const std::vector<double> slopes = alibi_slopes(kHeads);
  const int64_t n = c.layout.tokens();
  for (const Setting& s : settings) {
    SCOPED_TRACE(s.name);
    const Block block{{c.inputs[0], c.inputs[1], c.inputs[2]}, c.layout.position, c.layout.document};
    const std::vector<Variable> y = merge(part_of(s, c.inputs[3]), block, block, 0);
    const std::vector<double> o = to_values(y[0]), lse = to_values(y[1]);
    const AttentionOptions& option = s.options;
    double worst = 0;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t h = 0; h < kHeads; ++h) {
        std::vector<double> sum(kValue);
        double total = 0;
        for (int64_t j = 0; j < n; ++j) {
          const auto distance = static_cast<int64_t>(at[i] - at[j]), apart = std::abs(distance);
          const auto in_block = [&](int64_t t) { return static_cast<int64_t>(at[t]) / option.block; };
          if (of[i] != of[j] || (option.causal && distance < 0) ||
              (option.window > 0 && apart >= option.window) ||
              (option.block > 0 && in_block(i) != in_block(j)))
            continue;
          const int64_t group = h * kGroups / kHeads;
          double score = 0;
          for (int64_t d = 0; d < kKey; ++d)
            score += option.scale * q[(i * kHeads + h) * kKey + d] * k[(j * kGroups + group) * kKey + d];
          if (option.alibi) score -= slopes[h] * static_cast<double>(apart);
          const int64_t behind = option.causal ? 0 : kReach / 2;  // columns for keys behind the query
          if (s.bias) score += bias[h * kReach + std::clamp(distance + behind, int64_t{0}, kReach - 1)];
          const double w = weight(option.weighting, score);
          total += option.weighting == Weighting::softmax ? w : 1;
          for (int64_t e = 0; e < kValue; ++e) sum[e] += w * v[(j * kGroups + group) * kValue + e];
        }
        worst = std::max(worst, std::abs(lse[i * kHeads + h] - std::log(total)));
        for (int64_t e = 0; e < kValue; ++e)
          worst = std::max(worst, std::abs(o[(i * kHeads + h) * kValue + e] - sum[e] / total));
      }
    EXPECT_LE(worst, 1e-12);
  }
}

TEST(MergeOptions, Gradients) {
  for (const Setting& s : settings) {
    SCOPED_TRACE(s.name);
    const MergeCase c({2, 66});
    std::vector<Tensor> inputs = c.inputs;
    if (!s.bias) inputs.pop_back();
    expect_gradients(
        [&](const std::vector<Variable>& x) {
          const Block block{{x[0], x[1], x[2]}, c.layout.position, c.layout.document};
          return merge(part_of(s, s.bias ? x[3] : Variable()), block, block, 0);
        },
        inputs);
  }
}

// A plan keeps what a step does: columns of a projection, or their copies where rows are not at multiples of
// 16 bytes.
TEST(MergeOptions, OnMetaTheSameIsKept) {
  constexpr int64_t kTokens = 40;
  for (const int64_t size :
       {5, 6, 8}) {  // of 4 heads the rows end anywhere, columns begin anywhere, all fits
    const auto saved = [&](Device device) {
      const Layout layout = whole_documents({kTokens}, device);
      Tape tape;
      const Variable packed = tape.input(zeros({kTokens, 4 * size}, Dtype::bf16, device));
      const Block block{split_columns(packed, {{kTokens, 2, size}, {kTokens, 1, size}, {kTokens, 1, size}}),
                        layout.position, layout.document};
      merge({{}, flash_attention_forward, flash_attention_backward}, block, block, 0);
      return tape.saved_bytes();
    };
    EXPECT_EQ(saved(Device::meta), saved(default_device())) << size;
  }
}

// Decoding keeps the keys of the current block, however long the text; without blocks it keeps all.
TEST(MergeOptions, AStreamKeepsOneBlock) {
  for (const int64_t size : {0, 8}) {
    Stream stream;
    const Setting s{"", {.block = size}};
    int64_t at = 0;
    for (const int64_t count : {13, 3, 1, 1, 20, 1, 1}) {
      const Layout layout = make_layout({{0, at, at + count}});
      const Block block{{random_tensor({count, kHeads, kKey}, 1), random_tensor({count, kGroups, kKey}, 2),
                         random_tensor({count, kGroups, kValue}, 3)},
                        layout.position,
                        layout.document};
      LocalCrossing cross(layout, &stream);
      cross(part_of(s, {}), block);
      at += count;
      EXPECT_EQ(stream.slots[0].rows[0].size(), size > 0 ? at % size : at) << "after " << at;
    }
  }
}

}  // namespace
}  // namespace weft
