#include "optim/ema.h"

#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {
namespace {

template <class T>
void ema_as(const Tensor& mean, const Tensor& weights, const Tensor& weight) {
  using A = Acc<T>;
  T* m = data<T>(mean);
  const double* k = data<const double>(weight);
  map(
      mean.numel(), m, [=] __device__(A own, A w) { return own + static_cast<A>(*k) * (w - own); },
      static_cast<const T*>(m), data<const T>(weights));
}

}  // namespace

void ema(const Tensor& mean, const Tensor& weights, const Tensor& weight) {
  with_float(mean.dtype(), [&]<class T>() { ema_as<T>(mean, weights, weight); });
}

}  // namespace weft::cuda
