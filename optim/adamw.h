#pragma once
// AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019). With the gradient g and
// learning rate r of a step:
//   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
//   w = w (1 - r weight_decay) - r (m / correction1) / (sqrt(v / correction2) + eps)
// Vectors (gains, biases, decays) are spared the weight decay. The moments have the type of the masters;
// masters and working copies are written in one pass, bf16 by rounding to nearest even.

#include "optim/optimizer.h"

namespace weft {

struct AdamWConfig {
  double lr = 3e-4;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
};

class AdamW : public Optimizer {
 public:
  AdamW(const AdamWConfig& config, ParameterStore& store, Ranges owned);
  std::vector<StateTensor> state() const override;  // adamw.m, adamw.v

 protected:
  void prepare(StepState& s) const override;
  void apply(const Range& range, const StepState& s) override;

 private:
  AdamWConfig config_;
  RangeState m_, v_;
  Tensor factors_;  // see below
};

namespace cpu {
// All (n), flat; working may be the master itself. factors (4) f64, what changes from step to step: the
// gradient's scale, 1 - r weight_decay (taken only if `decays`), r / correction1 and 1 / sqrt(correction2).
void adamw(const Tensor& master, const Tensor& working, const Tensor& m, const Tensor& v,
           const Tensor& gradient, const AdamWConfig& config, bool decays, const Tensor& factors);
}  // namespace cpu
namespace cuda {
void adamw(const Tensor& master, const Tensor& working, const Tensor& m, const Tensor& v,
           const Tensor& gradient, const AdamWConfig& config, bool decays, const Tensor& factors);
}  // namespace cuda

}  // namespace weft
