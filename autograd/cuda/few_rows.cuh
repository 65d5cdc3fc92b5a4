#pragma once
// y = x w^T for up to 16 rows of x, as in decoding: what counts is to read w at the speed of the memory.

#include "autograd/cuda/early.cuh"

namespace weft::cuda {

constexpr int kFewRowsMost = 16;
constexpr int kFewRowsThreads = 256, kFewRowsColumns = 16;  // of y, to a block
constexpr int kFewRowsDepth = 32;                           // of k, to a warp at a time

// c (16, 8) += a (16, 16) b (16, 8) on a warp's tensor core (mma.m16n8k16). Lane 4 g + t has rows g and g + 8
// of a, column g of b, and of both the same four k; which these are is free, since the sum is over all.
__device__ inline void multiply_tile(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                     uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// x (rows, k), w (n, k) bf16 with pitches, both in packs of 16 bytes; y (rows, n). A block makes 16 columns
// of y: rows of w are what the tiles have 16 of. Its warps share out k and are summed in order, so an element
// of y has the same bits whatever `rows` is. kTiles: of 8 rows of x. kAbreast: pairs
// of packs of w that a lane has under way. It starts early (replay.h): w are weights, which no recording
// writes.
template <class To, int kTiles, int kAbreast>
__global__ void __launch_bounds__(kFewRowsThreads)
    few_rows_kernel(To* y, const bf16* x, const bf16* w, int rows, int64_t n, int64_t k, int64_t y_pitch,
                    int64_t x_pitch, int64_t w_pitch, float alpha, float beta) {
  constexpr int kWarps = kFewRowsThreads / static_cast<int>(kWarp);
  __shared__ float sums[kWarps][kTiles * 8][kFewRowsColumns + 1];
  const int warp = static_cast<int>(threadIdx.x / kWarp), lane = static_cast<int>(threadIdx.x % kWarp);
  const int group = lane / 4, packs = static_cast<int>(k / 8);
  const int64_t column = int64_t{blockIdx.x} * kFewRowsColumns;
  const auto* low = reinterpret_cast<const uint4*>(w + min(column + group, n - 1) * w_pitch);
  const auto* high = reinterpret_cast<const uint4*>(w + min(column + group + 8, n - 1) * w_pitch);
  constexpr int kStride = kWarps * kFewRowsDepth / 8;  // packs that the block takes at once
  const uint4 none{};
  uint4 a[kAbreast][2];
  const auto fetch = [&](int first) {
#pragma unroll
    for (int u = 0; u < kAbreast; ++u) {
      const int i = first + u * kStride;
      a[u][0] = i < packs ? low[i] : none;
      a[u][1] = i < packs ? high[i] : none;
    }
  };
  const int start = warp * kFewRowsDepth / 8 + lane % 4;
  fetch(start);
  wait_for_earlier();
  float c[kTiles][4] = {};
  for (int first = start; first - lane % 4 < packs;) {
#pragma unroll
    for (int u = 0; u < kAbreast; ++u) {
      const int i = first + u * kStride;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const int row = tile * 8 + group;
        const uint4 b = i < packs && row < rows ? reinterpret_cast<const uint4*>(x + row * x_pitch)[i] : none;
        multiply_tile(c[tile], a[u][0].x, a[u][1].x, a[u][0].y, a[u][1].y, b.x, b.y);
        multiply_tile(c[tile], a[u][0].z, a[u][1].z, a[u][0].w, a[u][1].w, b.z, b.w);
      }
    }
    first += kAbreast * kStride;
    if (first - lane % 4 < packs) fetch(first);
  }
  // Lane 4 g + t has columns 2t and 2t + 1 of the tile, rows of x, at rows g and g + 8, columns of y.
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[warp][tile * 8 + lane % 4 * 2 + e % 2][group + e / 2 * 8] = c[tile][e];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < rows * kFewRowsColumns; i += kFewRowsThreads) {
    const int row = i / kFewRowsColumns, at = i % kFewRowsColumns;
    if (column + at >= n) continue;
    float total = 0;
#pragma unroll
    for (int part = 0; part < kWarps; ++part) total += sums[part][row][at];
    To& target = y[row * y_pitch + column + at];
    target = static_cast<To>(alpha * total + (beta == 0 ? 0.f : beta * static_cast<float>(target)));
  }
}

}  // namespace weft::cuda
