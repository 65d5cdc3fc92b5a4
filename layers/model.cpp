#include "layers/model.h"

#include <numeric>

#include "attention/initialize.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/embedding.h"
#include "autograd/ops/matmul.h"

namespace weft {

int64_t derived_ffn(const std::string& kind, int64_t width) {
  const int64_t exact = kind == "swiglu" || kind == "sglu" ? (8 * width + 2) / 3 : 4 * width;
  return (exact + 63) / 64 * 64;
}

Model::Model(const ModelConfig& config, ParameterStore& store) : config_(config) {
  const ParameterScope scope(store, "");
  const Initializer rows = Initializer::normal(1 / std::sqrt(static_cast<double>(config.width)));
  embedding_ =
      scope.declare({"embedding.weight", {config.vocab, config.width}, ParameterKind::embedding, rows});
  if (config_.ffn == 0) config_.ffn = derived_ffn(config.ffn_kind, config.width);
  const auto depth = static_cast<int64_t>(config.layers.size());
  for (int64_t i = 0; i < depth; ++i) {
    const std::string& id = config.layers[static_cast<size_t>(i)];
    BlockConfig block;
    block.attention = {
        .mechanism = id,
        .attributes = config.attributes ? config.attributes(find_mechanism(id).id) : FieldValue{},
        .dims = {.heads = config.heads,
                 .kv_heads = config.kv_heads,
                 .key = config.head_size,
                 .value = config.head_size,
                 .width = config.width,
                 .layer = i,
                 .layers = depth},
        .short_conv = config.short_conv,
        .norm_eps = config.norm_eps};
    block.norm = config.norm;
    block.ffn_kind = config.ffn_kind;
    block.ffn = config_.ffn;
    block.checkpointing = config.checkpointing;
    blocks_.emplace_back(block, scope.inner(text("blocks.", i)));
  }
  norm_ = std::make_unique<Norm>(config.norm, config.width, config.norm_eps, scope.inner("norm"));
  if (!config.tied)
    head_ = scope.declare({"head.weight", {config.vocab, config.width}, ParameterKind::embedding, rows});
}

Model::Last Model::last(const Tensor& tokens, const Layout& layout, CrossingFactory& crossings,
                        std::vector<Variable>* losses, std::vector<Variable>* states) const {
  CHECK(tokens.dim(0) == layout.tokens(), "model: ", tokens.dim(0), " tokens, a layout of ", layout.tokens());
  Variable x;
  {
    const MemoryScope scope("embedding");
    x = embedding(embedding_, tokens);
    if (config_.scale_embedding) x = scale(x, std::sqrt(static_cast<double>(config_.width)));
  }
  if (states != nullptr) states->push_back(x);
  Variable branch;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const MemoryScope scope(text("layer ", i));
    const TransformerBlock::Output out = blocks_[i](x, branch, layout, crossings, static_cast<int>(i));
    x = out.x;
    branch = out.branch;
    if (states != nullptr) {
      if (branch.defined()) x = add(x, branch);
      branch = {};
      states->push_back(x);
    }
    if (losses != nullptr) losses->insert(losses->end(), out.losses.begin(), out.losses.end());
  }
  return {x, branch};
}

Variable Model::hidden(const Tensor& tokens, const Layout& layout, CrossingFactory& crossings,
                       std::vector<Variable>* losses, std::vector<Variable>* states) const {
  const Last of_blocks = last(tokens, layout, crossings, losses, states);
  const MemoryScope scope("output");
  return (*norm_)(of_blocks.x, of_blocks.branch).norm;
}

Tensor Model::next_logits(const Tensor& tokens, const Layout& layout, CrossingFactory& crossings) const {
  const NoTape pause;
  const Last of_blocks = last(tokens, layout, crossings, nullptr, nullptr);
  const MemoryScope scope("output");
  const Tensor& weight = output_weight()->working;
  if (norm_->is_rms() && !of_blocks.branch.defined()) {
    Around around = norm_->around();
    around.wide = true;
    if (few_rows_fused(of_blocks.x, weight, around)) return few_rows_linear(of_blocks.x, weight, around);
  }
  return logits((*norm_)(of_blocks.x, of_blocks.branch).norm);
}

Tensor Model::logits(const Tensor& hidden) const {
  const NoTape pause;
  const Tensor& weight = output_weight()->working;
  const Tensor logits = empty({hidden.dim(0), weight.dim(0)}, wide_of(hidden.dtype()), hidden.device());
  gemm(logits, hidden, weight, {false, true}, 1, 0);
  return logits;
}

int64_t Model::align() const {
  int64_t align = 1;
  for (const TransformerBlock& b : blocks_) align = std::lcm(align, b.attention().mechanism().align());
  return align;
}

}  // namespace weft
