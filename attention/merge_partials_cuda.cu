#include <cmath>

#include "attention/merge_partials.h"
#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {
namespace {

// What the first and the second are worth; neither where there is no key.
template <class A>
struct Shares {
  A first, second, lse;
  __device__ Shares(A l, A m) {
    const A top = l > m ? l : m;
    if (top == A(-INFINITY)) {
      first = second = 0;
      lse = top;
      return;
    }
    const A p = exp(l - top), r = exp(m - top);
    first = p / (p + r);
    second = r / (p + r);
    lse = top + log(p + r);
  }
};

// A warp a row of a head.
template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(T* o, Acc<T>* lse, const T* o1, const Acc<T>* lse1, const T* o2, const Acc<T>* lse2,
                   int64_t rows, int64_t d) {
  using A = Acc<T>;
  const int64_t lane = threadIdx.x % kWarp, warps = int64_t{gridDim.x} * (kThreads / kWarp);
  for (int64_t i = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp; i < rows; i += warps) {
    const Shares<A> s(lse1[i], lse2[i]);
    if (lane == 0) lse[i] = s.lse;
    for (int64_t c = i * d + lane; c < (i + 1) * d; c += kWarp)
      o[c] = static_cast<T>(s.first * A(o1[c]) + s.second * A(o2[c]));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(T* d1, Acc<T>* dlse1, T* d2, Acc<T>* dlse2, const T* o1, const Acc<T>* lse1, const T* o2,
                    const Acc<T>* lse2, const T* d_o, const Acc<T>* d_lse, int64_t rows, int64_t d) {
  using A = Acc<T>;
  const int64_t lane = threadIdx.x % kWarp, warps = int64_t{gridDim.x} * (kThreads / kWarp);
  for (int64_t i = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp; i < rows; i += warps) {
    const Shares<A> s(lse1[i], lse2[i]);
    A along = 0;
    for (int64_t c = i * d + lane; c < (i + 1) * d; c += kWarp) {
      const A g = A(d_o[c]);
      along += g * (A(o1[c]) - A(o2[c]));
      d1[c] = static_cast<T>(s.first * g);
      d2[c] = static_cast<T>(s.second * g);
    }
    along = warp_sum(along);
    if (lane != 0) continue;
    const A both = along * s.first * s.second;
    dlse1[i] = s.first * d_lse[i] + both;
    dlse2[i] = s.second * d_lse[i] - both;
  }
}

unsigned blocks_of(int64_t rows) { return blocks_for(rows, kThreads / static_cast<int>(kWarp)); }

}  // namespace

void merge_partials(const Tensor& o, const Tensor& lse, const Tensor& o1, const Tensor& lse1,
                    const Tensor& o2, const Tensor& lse2) {
  if (lse.numel() == 0) return;
  with_float(o.dtype(), [&]<class T>() {
    using A = Acc<T>;
    forward_kernel<T><<<blocks_of(lse.numel()), kThreads, 0, stream()>>>(
        data<T>(o), data<A>(lse), data<const T>(o1), data<const A>(lse1), data<const T>(o2),
        data<const A>(lse2), lse.numel(), o.dim(2));
  });
  check_launch("merge_partials");
}

void merge_partials_backward(const Tensor& d1, const Tensor& dlse1, const Tensor& d2, const Tensor& dlse2,
                             const Tensor& o1, const Tensor& lse1, const Tensor& o2, const Tensor& lse2,
                             const Tensor& d_o, const Tensor& d_lse) {
  if (lse1.numel() == 0) return;
  with_float(o1.dtype(), [&]<class T>() {
    using A = Acc<T>;
    backward_kernel<T><<<blocks_of(lse1.numel()), kThreads, 0, stream()>>>(
        data<T>(d1), data<A>(dlse1), data<T>(d2), data<A>(dlse2), data<const T>(o1), data<const A>(lse1),
        data<const T>(o2), data<const A>(lse2), data<const T>(d_o), data<const A>(d_lse), lse1.numel(),
        o1.dim(2));
  });
  check_launch("merge_partials_backward");
}

}  // namespace weft::cuda
