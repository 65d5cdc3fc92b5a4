#pragma once
// Two optimizers side by side: one for groups of matrices, one for all others.

#include "optim/optimizer.h"

namespace weft {

class Split : public Optimizer {
 public:
  Split(ParameterStore& store, Ranges owned, std::unique_ptr<Optimizer> matrices,
        std::unique_ptr<Optimizer> rest)
      : Optimizer(store, std::move(owned)), matrices_(std::move(matrices)), rest_(std::move(rest)) {}

  std::vector<StateTensor> state() const override {
    std::vector<StateTensor> all = matrices_->state();
    for (StateTensor& t : rest_->state()) all.push_back(std::move(t));
    return all;
  }

 protected:
  void prepare(StepState& s) const override {
    matrices_->prepare(s);
    rest_->prepare(s);
  }
  void apply(const Range& range, const StepState& s) override {
    (group_of(range).kind == ParameterKind::matrix ? matrices_ : rest_)->update(range, s);
  }

 private:
  std::unique_ptr<Optimizer> matrices_, rest_;
};

}  // namespace weft
