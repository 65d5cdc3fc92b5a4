#include "optim/ema.h"

#include <algorithm>
#include <cmath>

#include "optim/factors.h"

namespace weft {

Ema::Ema(double decay, ParameterStore& store, Ranges owned, std::unique_ptr<Optimizer> inner)
    : Optimizer(store, std::move(owned)),
      decay_(decay),
      inner_(std::move(inner)),
      mean_("ema", store, owned_),
      weight_(zeros({1}, Dtype::f64, store.device())) {
  CHECK(decay > 0 && decay < 1, "ema: decay ", decay);
  restart_mean(store, *this);
}

std::vector<StateTensor> Ema::state() const {
  std::vector<StateTensor> all = inner_->state();
  all.insert(all.end(), mean_.tensors().begin(), mean_.tensors().end());
  return all;
}

void Ema::prepare(StepState& s) const {
  s.ema_weight = (1 - decay_) / (1 - std::pow(decay_, static_cast<double>(s.updates)));
  put_factors(weight_, {s.ema_weight});
  inner_->prepare(s);
}

void Ema::apply(const Range& range, const StepState& s) {
  inner_->update(range, s);
  const Tensor weights = group_of(range).master.rows(range.begin, range.end);
  ON_DEVICE(store_.device(), ema(mean_.at(range), weights, weight_));
}

void restart_mean(const ParameterStore& store, const Optimizer& optimizer) {
  for (const StateTensor& t : optimizer.state())
    if (t.name == "ema")
      t.values.copy_from(
          store.groups()[static_cast<size_t>(t.range.group)].master.rows(t.range.begin, t.range.end));
}

AveragedWeights::AveragedWeights(ParameterStore& store, const Optimizer& optimizer) : store_(store) {
  int64_t longest = 0;
  for (const StateTensor& t : optimizer.state())
    if (t.name == "ema") {
      means_.push_back(t);
      longest = std::max(longest, t.range.size());
    }
  if (means_.empty()) return;
  constexpr int64_t kAtOnce = int64_t{1} << 20;
  scratch_ = empty({std::min(longest, kAtOnce)}, means_[0].values.dtype(), store.device());
  exchange();
}

AveragedWeights::~AveragedWeights() { exchange(); }

void AveragedWeights::exchange() {
  for (const StateTensor& t : means_) {
    const ParameterGroup& group = store_.groups()[static_cast<size_t>(t.range.group)];
    const Tensor weights = group.master.rows(t.range.begin, t.range.end);
    for (int64_t begin = 0; begin < t.range.size(); begin += scratch_.numel()) {
      const int64_t end = std::min(t.range.size(), begin + scratch_.numel());
      const Tensor kept = scratch_.rows(0, end - begin);
      kept.copy_from(weights.rows(begin, end));
      weights.rows(begin, end).copy_from(t.values.rows(begin, end));
      t.values.rows(begin, end).copy_from(kept);
    }
    if (group.working.buffer() != group.master.buffer())
      group.working.rows(t.range.begin, t.range.end).copy_from(weights);
  }
}

}  // namespace weft
