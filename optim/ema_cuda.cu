#include "optim/ema.h"

#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {
namespace {

template <class T>
void ema_as(const Tensor& mean, const Tensor& weights, Acc<T> k) {
  using A = Acc<T>;
  T* m = data<T>(mean);
  map(
      mean.numel(), m, [=] __device__(A own, A w) { return own + k * (w - own); }, static_cast<const T*>(m),
      data<const T>(weights));
}

}  // namespace

void ema(const Tensor& mean, const Tensor& weights, double weight) {
  with_float(mean.dtype(), [&]<class T>() { ema_as<T>(mean, weights, static_cast<Acc<T>>(weight)); });
}

}  // namespace weft::cuda
