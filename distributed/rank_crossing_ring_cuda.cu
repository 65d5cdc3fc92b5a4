#include <cmath>

#include "autograd/cuda/kernel.cuh"
#include "distributed/rank_crossing_merge.h"

namespace weft::cuda {
namespace {

// A warp takes a row: all its threads read the old lse before one writes the new.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    add_partial_kernel(T* o, T* lse, const T* more_o, const T* more_lse, int64_t rows, int64_t width) {
  struct alignas(V * sizeof(T)) P {
    T v[V];
  };
  using A = Acc<T>;
  constexpr int64_t kRows = kThreads / kWarp;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  for (int64_t i = blockIdx.x * kRows + threadIdx.x / kWarp; i < rows; i += gridDim.x * kRows) {
    const A x = lse[i], y = more_lse[i], top = x > y ? x : y;
    if (top == A(-INFINITY)) continue;
    const A p = exp(x - top), q = exp(y - top), sum = p + q;
    for (int64_t j = i * width + lane * V; j < (i + 1) * width; j += kWarp * V) {
      P a = *reinterpret_cast<const P*>(o + j);
      const P b = *reinterpret_cast<const P*>(more_o + j);
#pragma unroll
      for (int v = 0; v < V; ++v) a.v[v] = static_cast<T>((p * A(a.v[v]) + q * A(b.v[v])) / sum);
      *reinterpret_cast<P*>(o + j) = a;
    }
    __syncwarp();
    if (lane == 0) lse[i] = static_cast<T>(top + log(sum));
  }
}

template <class T, int V>
void add_partial_as(const Tensor& o, const Tensor& lse, const Tensor& more_o, const Tensor& more_lse) {
  const int64_t rows = lse.numel();
  add_partial_kernel<T, V><<<blocks_for(rows, kThreads / static_cast<int>(kWarp)), kThreads, 0, stream()>>>(
      data<T>(o), data<T>(lse), data<const T>(more_o), data<const T>(more_lse), rows, o.dim(2));
  check_launch("add_partial");
}

}  // namespace

void add_partial(const Tensor& o, const Tensor& lse, const Tensor& more_o, const Tensor& more_lse) {
  if (lse.numel() == 0) return;
  with_float(o.dtype(), [&]<class T>() {
    constexpr int kSize = Pack<T>::kSize;
    if (o.dim(2) % kSize == 0 && aligned(o.raw()) && aligned(more_o.raw()))
      add_partial_as<T, kSize>(o, lse, more_o, more_lse);
    else
      add_partial_as<T, 1>(o, lse, more_o, more_lse);
  });
}

}  // namespace weft::cuda
