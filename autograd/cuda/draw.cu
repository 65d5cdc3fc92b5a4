#include "autograd/draw.h"

#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {
namespace {

template <class T>
void draw_as(const Tensor& to, Spread spread, double scale, const RandomKey& key) {
  T* const p = data<T>(to);
  each(to.numel(), [=] __device__(int64_t i) {
    p[i] = static_cast<T>(drawn(spread, scale, key, static_cast<uint64_t>(i)));
  });
}

}  // namespace

void draw(const Tensor& to, Spread spread, double scale, const RandomKey& key) {
  with_float(to.dtype(), [&]<class T>() { draw_as<T>(to, spread, scale, key); });
}

}  // namespace weft::cuda
