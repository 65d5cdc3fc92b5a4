#pragma once
// y = x w^T for a few rows of x, as in decoding: what counts is to read w at the speed of the memory, and a
// product on tensor cores would wait for it with most of its rows empty.

#include "autograd/cuda/early.cuh"

namespace weft::cuda {

constexpr int kFewRowsThreads = 256, kWarpColumns = 2;  // rows of w that a warp has under way
constexpr int kFewRowsAbreast = 4;                      // packs of each that a lane has
constexpr int kFewRowsMost = 4;
constexpr int64_t kFewRowsLongest = 24 << 10;  // M rows of x lie in shared memory

// x (M, K) bf16 with a pitch, w (N, K) bf16 with a pitch, both in packs of 16 bytes; y (M, N). A warp sums
// two columns of y in one order, whatever M and wherever the warp. It starts_early() (replay.h): it reads the
// first of w, which no recording writes, while what was asked for before it may still run.
template <class To, int M>
__global__ void __launch_bounds__(kFewRowsThreads)
    few_rows_kernel(To* y, const bf16* x, const bf16* w, int64_t n, int64_t k, int64_t y_pitch,
                    int64_t x_pitch, int64_t w_pitch, float alpha, float beta) {
  constexpr int kPack = Pack<bf16>::kSize;
  extern __shared__ __align__(16) unsigned char shared[];
  auto* rows = reinterpret_cast<Pack<bf16>*>(shared);  // (M, K)
  const int packs = static_cast<int>(k / kPack), lane = static_cast<int>(threadIdx.x % kWarp);
  const int64_t column =
      (int64_t{blockIdx.x} * (kFewRowsThreads / kWarp) + threadIdx.x / kWarp) * kWarpColumns;
  const Pack<bf16>* from[kWarpColumns];
#pragma unroll
  for (int c = 0; c < kWarpColumns; ++c)
    from[c] = reinterpret_cast<const Pack<bf16>*>(w + min(column + c, n - 1) * w_pitch);
  Pack<bf16> b[kFewRowsAbreast][kWarpColumns];
  const auto fetch = [&](int first) {
#pragma unroll
    for (int u = 0; u < kFewRowsAbreast; ++u)
#pragma unroll
      for (int c = 0; c < kWarpColumns; ++c) {
        const int i = first + u * static_cast<int>(kWarp);
        b[u][c] = i < packs ? from[c][i] : Pack<bf16>{};
      }
  };
  fetch(lane);
  wait_for_earlier();
  for (int m = 0; m < M; ++m)
    for (int i = static_cast<int>(threadIdx.x); i < packs; i += kFewRowsThreads)
      rows[m * packs + i] = reinterpret_cast<const Pack<bf16>*>(x + m * x_pitch)[i];
  __syncthreads();
  float sum[kWarpColumns][M] = {};
  for (int first = lane;;) {
#pragma unroll
    for (int u = 0; u < kFewRowsAbreast; ++u) {
      const int i = first + u * static_cast<int>(kWarp);
      if (i >= packs) break;
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const Pack<bf16> a = rows[m * packs + i];
#pragma unroll
        for (int j = 0; j < kPack; ++j) {
          const float value = static_cast<float>(a.v[j]);
#pragma unroll
          for (int c = 0; c < kWarpColumns; ++c) sum[c][m] += value * static_cast<float>(b[u][c].v[j]);
        }
      }
    }
    first += kFewRowsAbreast * static_cast<int>(kWarp);
    if (first - lane >= packs) break;  // the same for all lanes
    fetch(first);
  }
#pragma unroll
  for (int c = 0; c < kWarpColumns; ++c)
#pragma unroll
    for (int m = 0; m < M; ++m) {
      const float total = warp_sum(sum[c][m]);
      if (threadIdx.x % kWarp != 0 || column + c >= n) continue;
      To& target = y[m * y_pitch + column + c];
      target = static_cast<To>(alpha * total + (beta == 0 ? 0.f : beta * static_cast<float>(target)));
    }
}

}  // namespace weft::cuda
