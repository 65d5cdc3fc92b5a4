#include "optim/gradient_norm.h"

#include <algorithm>

#include "autograd/cuda/rows.cuh"

namespace weft::cuda {
namespace {

constexpr int64_t kPerBlock = 1 << 14, kMostBlocks = 1024;

// Which elements a thread sums depends on n alone, not on where x begins.
template <class T, bool whole>
__global__ void __launch_bounds__(kThreads) squares_kernel(double* to, const T* x, int64_t n) {
  constexpr int V = Pack<T>::kSize;
  const int64_t step = int64_t{gridDim.x} * blockDim.x * V;
  double sum = 0;
#pragma unroll 4
  for (int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * V; i < n; i += step) {
    Vector<T, V> v;
    if (whole && i + V <= n)
      v = load<true, V>(x + i, V);
    else
      v = load<false, V>(x + i, n - i);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const auto value = static_cast<double>(Acc<T>(v.v[e]));
      sum += value * value;
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) to[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) fold_kernel(double* to, const double* parts, int64_t count) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += parts[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *to = sum;
}

}  // namespace

void sum_of_squares(const Tensor& to, const Tensor& x) {
  const int64_t n = x.numel();
  const int64_t blocks = std::clamp<int64_t>((n + kPerBlock - 1) / kPerBlock, 1, kMostBlocks);
  const Tensor parts = empty({blocks}, Dtype::f64, Device::cuda);
  with_float(x.dtype(), [&]<class T>() {
    auto* kernel = aligned(x.raw()) ? squares_kernel<T, true> : squares_kernel<T, false>;
    kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream()>>>(data<double>(parts), data<const T>(x),
                                                                     n);
  });
  check_launch("sum_of_squares");
  fold_kernel<<<1, kThreads, 0, stream()>>>(data<double>(to), data<const double>(parts), blocks);
  check_launch("sum_of_squares");
}

}  // namespace weft::cuda
