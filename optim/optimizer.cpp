#include "optim/optimizer.h"

#include <algorithm>

#include "optim/adamw.h"
#include "optim/clip.h"
#include "optim/ema.h"
#include "optim/muon.h"
#include "optim/split.h"

namespace weft {

void Optimizer::step(StepState& s) {
  if (s.skip) return;
  begin(s);
  for (const Range& range : owned_) update(range, s);
}

void Optimizer::begin(StepState& s) const {
  if (s.skip) return;
  ++s.updates;
  s.clip = 1;
  prepare(s);
}

void Optimizer::update(const Range& range, const StepState& s) {
  CHECK(std::any_of(owned_.begin(), owned_.end(), [&](const Range& own) { return own.contains(range); }),
        "optimizer: range [", range.begin, ", ", range.end, ") of group ", range.group, " is not owned");
  if (!s.skip) apply(range, s);
}

RangeState::RangeState(std::string name, const ParameterStore& store, const Ranges& owned) {
  const MemoryScope scope("optimizer");
  for (const Range& range : owned) {
    const Tensor& master = store.groups()[static_cast<size_t>(range.group)].master;
    tensors_.push_back({name, range, zeros({range.size()}, master.dtype(), master.device())});
  }
}

Tensor RangeState::at(const Range& range) const {
  for (const StateTensor& t : tensors_)
    if (t.range.contains(range)) return t.values.rows(range.begin - t.range.begin, range.end - t.range.begin);
  throw Error(Exit::internal, "optimizer: no state for a range");
}

std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& config, ParameterStore& store,
                                          Ranges owned) {
  if (config.kind != "adamw" && config.kind != "muon")
    throw Error(Exit::recipe, "there is no optimizer '" + config.kind + "'", "optim.kind",
                "choose adamw or muon");
  const AdamWConfig adamw{config.lr, config.beta1, config.beta2, config.eps, config.weight_decay};
  std::unique_ptr<Optimizer> optimizer;
  if (config.kind == "adamw") {
    optimizer = std::make_unique<AdamW>(adamw, store, owned);
  } else {
    Ranges matrices, rest;
    for (const Range& range : owned) {
      const ParameterKind kind = store.groups()[static_cast<size_t>(range.group)].kind;
      (kind == ParameterKind::matrix ? matrices : rest).push_back(range);
    }
    const MuonConfig muon{config.muon_lr, config.muon_momentum, config.weight_decay};
    optimizer = std::make_unique<Split>(store, owned, std::make_unique<Muon>(muon, store, matrices),
                                        std::make_unique<AdamW>(adamw, store, rest));
  }
  if (config.clip > 0) optimizer = std::make_unique<Clip>(config.clip, store, owned, std::move(optimizer));
  if (config.ema > 0) optimizer = std::make_unique<Ema>(config.ema, store, owned, std::move(optimizer));
  return optimizer;
}

std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& config, ParameterStore& store) {
  return make_optimizer(config, store, whole(store));
}

}  // namespace weft
