#include "layers/block.h"

#include "autograd/checkpoint.h"
#include "autograd/ops/elementwise.h"

namespace weft {

TransformerBlock::TransformerBlock(const BlockConfig& config, const ParameterScope& scope)
    : checkpointing_(config.checkpointing),
      attention_(config.attention, scope.inner("attention")),
      ffn_norm_(config.norm, config.attention.dims.width, config.attention.norm_eps, scope.inner("ffn_norm")),
      ffn_(config.ffn_kind, config.attention.dims.width, config.ffn, config.attention.dims.layers,
           scope.inner("ffn")) {
  if (!attention_.mechanism().whole_layer())
    attention_norm_.emplace(config.norm, config.attention.dims.width, config.attention.norm_eps,
                            scope.inner("attention_norm"));
}

std::vector<Variable> TransformerBlock::operator()(const Variable& x, const Layout& layout,
                                                   CrossingFactory& crossings, int layer) const {
  const Function attend = [this, layout, &crossings, layer](const std::vector<Variable>& v) {
    const MemoryScope scope("attention");
    const std::unique_ptr<Crossing> cross = crossings.make(layout, layer);
    std::vector<Variable> out{attention_norm_ ? add(v[0], attention_((*attention_norm_)(v[0]), *cross))
                                              : attention_(v[0], *cross)};
    for (const AuxiliaryLoss& loss : cross->losses()) out.push_back(scale(loss.value, loss.weight));
    return out;
  };
  const Function feed = [this](const std::vector<Variable>& v) {
    const MemoryScope scope("ffn");
    return std::vector{add(v[0], ffn_(ffn_norm_(v[0])))};
  };
  const auto run = [](bool again, const Function& f, const std::vector<Variable>& in) {
    return again ? checkpoint(in, f) : f(in);
  };
  if (checkpointing_ == "block") {
    return checkpoint({x}, [attend, feed](const std::vector<Variable>& v) {
      std::vector<Variable> out = attend(v);
      out[0] = feed({out[0]})[0];
      return out;
    });
  }
  std::vector<Variable> out = run(checkpointing_ == "attention", attend, {x});
  out[0] = run(checkpointing_ == "ffn", feed, {out[0]})[0];
  return out;
}

}  // namespace weft
