#pragma once
// A language model: embedding, blocks with one mechanism each, norm, output projection.

#include "layers/block.h"

namespace weft {

struct ModelConfig {
  std::vector<std::string> layers;  // the mechanism of each block
  // Attributes by mechanism id, a map value each; missing ids take their defaults.
  std::function<FieldValue(const std::string& id)> attributes = {};
  int64_t width = 256, heads = 4, kv_heads = 4, head_size = 64, ffn = 0;
  std::string ffn_kind = "swiglu", norm = "rms", checkpointing = "none";
  double norm_eps = 1e-6;
  bool tied = true;
  bool scale_embedding = false;  // times sqrt(width)
  int64_t vocab = 0, short_conv = 0;
};

class Model {
 public:
  // Declares every parameter in the store, which the caller commits.
  Model(const ModelConfig& config, ParameterStore& store);

  // tokens (N) i32 -> normed outputs of the last block (N, C). `losses` receives auxiliary losses, `states`
  // the output of the embedding and of every block.
  Variable hidden(const Tensor& tokens, const Layout& layout, CrossingFactory& crossings,
                  std::vector<Variable>* losses = nullptr, std::vector<Variable>* states = nullptr) const;
  // (N, C) -> logits (N, V) in f32 (f64): for a few tokens; training uses projected_cross_entropy.
  Tensor logits(const Tensor& hidden) const;
  // logits(hidden(tokens, ...)), with the last norm and the product as one kernel where few_rows_linear can.
  Tensor next_logits(const Tensor& tokens, const Layout& layout, CrossingFactory& crossings) const;
  const Parameter& output_weight() const { return head_.defined() ? head_ : embedding_; }

  const ModelConfig& config() const { return config_; }
  const std::vector<TransformerBlock>& blocks() const { return blocks_; }
  // Rank cuts inside a document fall on multiples of this.
  int64_t align() const;

 private:
  struct Last {
    Variable x, branch;  // whose sum is the last block's output
  };
  Last last(const Tensor& tokens, const Layout& layout, CrossingFactory& crossings,
            std::vector<Variable>* losses, std::vector<Variable>* states) const;

  ModelConfig config_;
  Parameter embedding_, head_;
  std::vector<TransformerBlock> blocks_;
  std::unique_ptr<Norm> norm_;
};

// Two thirds of 4 x width for a gated unit, 4 x width otherwise, rounded up to a multiple of 64.
int64_t derived_ffn(const std::string& kind, int64_t width);

}  // namespace weft
