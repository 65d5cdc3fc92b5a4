#pragma once
// A running mean of the weights beside any optimizer:  mean += k (w - mean),  k = (1 - d) / (1 - d^t) at
// update t. This k makes the mean one of the updated weights alone, free of the initial ones.

#include "optim/optimizer.h"

namespace weft {

class Ema : public Optimizer {
 public:
  Ema(double decay, ParameterStore& store, Ranges owned, std::unique_ptr<Optimizer> inner);
  std::vector<StateTensor> state() const override;  // inner's, and ema

 protected:
  void prepare(StepState& s) const override;
  void apply(const Range& range, const StepState& s) override;

 private:
  double decay_;
  std::unique_ptr<Optimizer> inner_;
  RangeState mean_;
  Tensor weight_;  // (1) f64, of the step
};

// The mean is the weights as they are, as before the first update: after others were read in their place.
void restart_mean(const ParameterStore& store, const Optimizer& optimizer);

// While it lives, the mean stands in the place of the weights, for evaluation; then the weights come back, to
// the bit. Does nothing if the optimizer keeps no mean. Where ranks own ranges, each exchanges its own, and
// gathers the working copies afterwards, both times.
class AveragedWeights {
 public:
  AveragedWeights(ParameterStore& store, const Optimizer& optimizer);
  ~AveragedWeights();
  AveragedWeights(const AveragedWeights&) = delete;
  AveragedWeights& operator=(const AveragedWeights&) = delete;

 private:
  void exchange();

  ParameterStore& store_;
  std::vector<StateTensor> means_;
  Tensor scratch_;
};

namespace cpu {
// mean += weight[0] (weights - mean), weight (1) f64
void ema(const Tensor& mean, const Tensor& weights, const Tensor& weight);
}  // namespace cpu
namespace cuda {
void ema(const Tensor& mean, const Tensor& weights, const Tensor& weight);
}  // namespace cuda

}  // namespace weft
