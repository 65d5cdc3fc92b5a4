#include "layers/block.h"

#include <algorithm>

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

namespace {

using Variables = std::vector<Variable>;

Variable total(const Variable& x, const Variable& branch) { return branch.defined() ? add(x, branch) : x; }

// What is run again keeps one tensor, not two: {x, branch, losses...} of {x, branch}, summed before and
// after.
Variables summed_and_checkpointed(const Function& f, const Variables& in) {
  Variables out = checkpoint({total(in[0], in[1])}, [f](const Variables& v) {
    Variables inner = f({v[0], Variable()});
    inner[0] = total(inner[0], inner[1]);
    inner.erase(inner.begin() + 1);
    return inner;
  });
  out.insert(out.begin() + 1, Variable());
  return out;
}

}  // namespace

TransformerBlock::Output TransformerBlock::step(const Tensor& x, const Layout& layout,
                                                CrossingFactory& crossings, int layer) const {
  const std::unique_ptr<Crossing> cross = crossings.make(layout, layer);
  const Tensor attended = attention_.step(x, *attention_norm_, *cross);
  std::vector<Variable> losses;
  for (const AuxiliaryLoss& loss : cross->losses()) losses.push_back(scale(loss.value, loss.weight));
  return {ffn_.step(attended, ffn_norm_), {}, losses};
}

TransformerBlock::Output TransformerBlock::operator()(const Variable& x, const Variable& branch,
                                                      const Layout& layout, CrossingFactory& crossings,
                                                      int layer) const {
  if (attention_norm_ && ffn_norm_.is_rms() && attention_.fuses(x, *attention_norm_))
    return step(total(x, branch), layout, crossings, layer);
  // Each {x, branch} -> {x, branch, losses...}.
  const auto attend = [this, &crossings, layer](const Layout& layout, const Variables& v) {
    const MemoryScope scope("attention");
    const std::unique_ptr<Crossing> cross = crossings.make(layout, layer);
    Variables out;
    if (attention_norm_) {
      const SumAndNorm in = (*attention_norm_)(v[0], v[1]);
      out = {in.sum, attention_(in.norm, *cross)};
    } else {
      out = {attention_(total(v[0], v[1]), *cross), Variable()};
    }
    for (const AuxiliaryLoss& loss : cross->losses()) out.push_back(scale(loss.value, loss.weight));
    return out;
  };
  const auto feed = [this](const Variables& v) {
    const MemoryScope scope("ffn");
    const SumAndNorm in = ffn_norm_(v[0], v[1]);
    return Variables{in.sum, ffn_(in.norm)};
  };
  const auto both = [attend, feed](const Layout& layout, const Variables& v) {
    Variables out = attend(layout, v);
    const Variables fed = feed({out[0], out[1]});
    std::copy(fed.begin(), fed.end(), out.begin());
    return out;
  };
  // What runs again keeps a layout of its own.
  const auto again = [&layout](const auto& f) {
    return [f, layout](const Variables& v) { return f(layout, v); };
  };
  Variables out;
  if (checkpointing_ == "block") {
    out = summed_and_checkpointed(again(both), {x, branch});
  } else {
    out = checkpointing_ == "attention" ? summed_and_checkpointed(again(attend), {x, branch})
                                        : attend(layout, {x, branch});
    const Variables in{out[0], out[1]},
        fed = checkpointing_ == "ffn" ? summed_and_checkpointed(feed, in) : feed(in);
    std::copy(fed.begin(), fed.end(), out.begin());
  }
  return {out[0], out[1], {out.begin() + 2, out.end()}};
}

}  // namespace weft
