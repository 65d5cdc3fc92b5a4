#pragma once
// Clipping by the global norm (Pascanu et al., "On the difficulty of training recurrent neural networks",
// ICML 2013): a gradient longer than `limit` is shortened to it. The factor joins the update, so clipping
// costs no pass of its own.

#include "optim/optimizer.h"

namespace weft {

class Clip : public Optimizer {
 public:
  Clip(double limit, ParameterStore& store, Ranges owned, std::unique_ptr<Optimizer> inner)
      : Optimizer(store, std::move(owned)), limit_(limit), inner_(std::move(inner)) {
    CHECK(limit > 0, "clip: limit ", limit);
  }

  std::vector<StateTensor> state() const override { return inner_->state(); }

 protected:
  void prepare(StepState& s) const override {
    if (s.gradient_norm > limit_) s.clip *= limit_ / s.gradient_norm;
    inner_->prepare(s);
  }
  void apply(const Range& range, const StepState& s) override { inner_->update(range, s); }

 private:
  double limit_;
  std::unique_ptr<Optimizer> inner_;
};

}  // namespace weft
