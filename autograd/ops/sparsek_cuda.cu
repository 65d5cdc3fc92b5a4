#include <cmath>

#include "autograd/cuda/kernel.cuh"
#include "autograd/ops/sparsek.h"
#include "autograd/ops/sparsek_threshold.cuh"

namespace weft::cuda {
namespace {

// f(z) for each element of a lane's share of a row: kHeld of them in registers, or read again if kHeld is 0.
template <class T, int kHeld>
struct Share {
  const T* row;
  int64_t m;
  int lane;
  double held[kHeld > 0 ? kHeld : 1];

  __device__ Share(const T* r, int64_t width, int l) : row(r), m(width), lane(l) {
#pragma unroll
    for (int e = 0; e < kHeld; ++e) {
      const int64_t j = lane + e * int64_t{kWarp};
      held[e] = j < m ? static_cast<double>(Acc<T>(row[j])) : -INFINITY;
    }
  }
  template <class F>
  __device__ void for_each(F f) const {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int e = 0; e < kHeld; ++e) f(lane + e * int64_t{kWarp}, held[e]);
    } else {
      for (int64_t j = lane; j < m; j += kWarp) f(j, static_cast<double>(Acc<T>(row[j])));
    }
  }
};

template <class T, int kHeld>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Acc<T>* p, const T* z, int64_t rows, int64_t m, int64_t k) {
  constexpr int64_t kRows = kThreads / kWarp;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  for (int64_t i = blockIdx.x * kRows + threadIdx.x / kWarp; i < rows; i += gridDim.x * kRows) {
    const Share<T, kHeld> share(z + i * m, m, lane);
    int count = 0;
    double top = -INFINITY, lowest = INFINITY;
    share.for_each([&](int64_t, double value) {
      if (!(value > -INFINITY)) return;
      ++count;
      top = value > top ? value : top;
      lowest = value < lowest ? value : lowest;
    });
    count = static_cast<int>(__reduce_add_sync(0xffffffffu, count));
    top = warp_max(top);
    lowest = -warp_max(-lowest);
    const bool all = count <= k;
    const double tau = all ? 0 : sparsek_threshold(share, top, lowest, k, -1);
    share.for_each([&](int64_t j, double value) {
      if (j >= m) return;
      const double above = value - top - tau;
      const double clipped = above < 0 ? 0 : above > 1 ? 1 : above;
      p[i * m + j] = static_cast<Acc<T>>(value == -INFINITY ? 0 : all ? 1 : clipped);
    });
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(T* dz, const Acc<T>* p, const T* dp, int64_t rows, int64_t m) {
  constexpr int64_t kRows = kThreads / kWarp;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  for (int64_t i = blockIdx.x * kRows + threadIdx.x / kWarp; i < rows; i += gridDim.x * kRows) {
    const auto between = [&](int64_t j) { return p[j] > 0 && p[j] < 1; };
    double sum = 0;
    int count = 0;
    for (int64_t j = i * m + lane; j < (i + 1) * m; j += kWarp)
      if (between(j)) {
        sum += static_cast<double>(Acc<T>(dp[j]));
        ++count;
      }
    sum = warp_sum(sum);
    count = static_cast<int>(__reduce_add_sync(0xffffffffu, count));
    for (int64_t j = i * m + lane; j < (i + 1) * m; j += kWarp)
      dz[j] = static_cast<T>(
          between(j) ? static_cast<Acc<T>>(static_cast<double>(Acc<T>(dp[j])) - sum / count) : Acc<T>(0));
  }
}

unsigned blocks_of(int64_t rows) { return blocks_for(rows, kThreads / static_cast<int>(kWarp)); }

template <class T>
void forward_as(const Tensor& p, const Tensor& z, int64_t k) {
  const int64_t m = z.dim(-1), rows = z.numel() / m;
  const auto launch = [&]<int kHeld>() {
    forward_kernel<T, kHeld>
        <<<blocks_of(rows), kThreads, 0, stream()>>>(data<Acc<T>>(p), data<const T>(z), rows, m, k);
  };
  if (m <= 2 * kWarp)
    launch.template operator()<2>();
  else if (m <= 8 * kWarp)
    launch.template operator()<8>();
  else
    launch.template operator()<0>();
  check_launch("sparsek");
}

}  // namespace

void sparsek_forward(const Tensor& p, const Tensor& z, int64_t k) {
  if (z.numel() > 0) with_float(z.dtype(), [&]<class T>() { forward_as<T>(p, z, k); });
}

void sparsek_backward(const Tensor& dz, const Tensor& p, const Tensor& dp) {
  if (dz.numel() == 0) return;
  const int64_t m = p.dim(-1), rows = p.numel() / m;
  with_float(dz.dtype(), [&]<class T>() {
    backward_kernel<T><<<blocks_of(rows), kThreads, 0, stream()>>>(data<T>(dz), data<const Acc<T>>(p),
                                                                   data<const T>(dp), rows, m);
  });
  check_launch("sparsek_backward");
}

}  // namespace weft::cuda
