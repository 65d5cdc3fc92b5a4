#include "autograd/ops/rows.h"
#include "optim/blocks.h"
#include "optim/ema.h"

namespace weft::cpu {

void ema(const Tensor& mean, const Tensor& weights, const Tensor& weight) {
  with_float(mean.dtype(), [&]<class T>() {
    using A = Acc<T>;
    T* m = mean.data<T>();
    const T* w = weights.data<T>();
    const auto k = static_cast<A>(*weight.data<double>());
    each_block(mean.numel(), [=](int64_t, int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) store(m[i], A(m[i]) + k * (A(w[i]) - A(m[i])));
    });
  });
}

}  // namespace weft::cpu
