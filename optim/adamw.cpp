#include "optim/adamw.h"

#include <cmath>

#include "optim/factors.h"

namespace weft {

AdamW::AdamW(const AdamWConfig& config, ParameterStore& store, Ranges owned)
    : Optimizer(store, std::move(owned)),
      config_(config),
      m_("adamw.m", store, owned_),
      v_("adamw.v", store, owned_),
      factors_(zeros({4}, Dtype::f64, store.device())) {}

std::vector<StateTensor> AdamW::state() const {
  std::vector<StateTensor> all = m_.tensors();
  all.insert(all.end(), v_.tensors().begin(), v_.tensors().end());
  return all;
}

void AdamW::prepare(StepState& s) const {
  s.correction1 = 1 - std::pow(config_.beta1, static_cast<double>(s.updates));
  s.correction2 = 1 - std::pow(config_.beta2, static_cast<double>(s.updates));
  const double lr = config_.lr * s.rate;
  put_factors(factors_, {s.gradient_scale * s.clip, 1 - lr * config_.weight_decay, lr / s.correction1,
                         1 / std::sqrt(s.correction2)});
}

void AdamW::apply(const Range& range, const StepState&) {
  const ParameterGroup& group = group_of(range);
  const auto part = [&](const Tensor& flat) { return flat.rows(range.begin, range.end); };
  ON_DEVICE(store_.device(),
            adamw(part(group.master), part(group.working), m_.at(range), v_.at(range), part(group.gradient),
                  config_, group.kind != ParameterKind::vector, factors_));
}

}  // namespace weft
