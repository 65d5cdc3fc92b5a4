#include "attention/diag_attention.h"

#include <cmath>

#include "attention/naive.h"
#include "attention/softmax.h"
#include "autograd/gradcheck.h"

namespace weft {

void DiagAttentionConfig::fields(FieldVisitor& f) {
  f("scale", scale, "factor of the scores q k; 0 = 1 / sqrt(key size)", {.min = 0});
  f("block", block, "tokens in a block", {.unit = "tokens", .min = 1, .max = 1 << 20});
}

DiagAttention::DiagAttention(Config config, Dimensions dims, const ParameterScope&)
    : Mechanism(dims), config_(config) {
  if (config_.scale == 0) config_.scale = 1 / std::sqrt(static_cast<double>(dims.key));
}

std::vector<Input> DiagAttention::inputs() const { return {{"q", "h k"}, {"k", "g k"}, {"v", "g v"}}; }

Variable DiagAttention::forward(const Block& block, Crossing& cross) const {
  const AttentionOptions options{.scale = config_.scale, .block = config_.block};
  return cross(softmax_merge(options), block)[0];
}

Variable DiagAttention::reference(const Block& block) const {
  const Tensor bias = naive_bias(dims().heads, block.x[0].dim(0), block.x[0].dtype(),
                                 [w = config_.block](int64_t, int64_t i, int64_t j) {
                                   return j <= i && i / w == j / w ? 0.0 : -INFINITY;
                                 });
  return naive_attention(block.x[0], block.x[1], block.x[2], bias, config_.scale);
}

std::vector<Identity> DiagAttention::identities() const {
  const Dimensions d = dims();
  const auto run = [d](int64_t w, const Layout& layout) {
    ParameterStore store(Dtype::f64);
    const DiagAttention m({.block = w}, d, {store, ""});
    LocalCrossing cross(layout);
    return m.forward(random_block(m, layout), cross);
  };
  return {{"one block as long as the text is softmax attention", 1e-12,
           [=] {
             ParameterStore store(Dtype::f64);
             const Softmax softmax({}, d, {store, ""});
             const Layout layout = whole_documents({11});
             LocalCrossing cross(layout);
             return largest_difference(run(11, layout),
                                       softmax.forward(random_block(softmax, layout), cross));
           }},
          {"blocks are documents of their own", 1e-12, [=] {
             Layout blocks = whole_documents({8, 8, 5});
             ParameterStore store(Dtype::f64);
             const Softmax softmax({}, d, {store, ""});
             LocalCrossing cross(blocks);
             return largest_difference(run(8, whole_documents({21})),
                                       softmax.forward(random_block(softmax, blocks), cross));
           }}};
}

}  // namespace weft
