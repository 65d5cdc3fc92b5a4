#pragma once
// What the kernels of products of a few rows share, so that all of them give the same bits.

#include "autograd/cuda/rounded_math.cuh"

namespace weft::cuda {

constexpr int kFewRowsMost = 16;
constexpr int kFewThreads = 256, kFewWarps = kFewThreads / static_cast<int>(kWarp);
constexpr int kUnit = 16;   // rows of b that the tensor cores take at once
constexpr int kWindow = 8;  // packs of a row of b that a warp takes at once: a line of 128 bytes
constexpr int kHeld = 4;    // windows of a that a warp keeps in registers
constexpr int kMostWindows = kHeld * kFewWarps;  // to a block

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

// A window of 16 rows of b, packs of which are those of the lane at rows g and g + 8, by a's rows. Its halves
// have sums of their own: a product waits for the one before it in its sum.
template <int kTiles>
__device__ void multiply_window(float (&c)[2][kTiles][4], const uint4 (&b)[4], const uint4 (&a)[2][kTiles]) {
#pragma unroll
  for (int u = 0; u < 2; ++u)
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint4 &low = b[2 * u], &high = b[2 * u + 1], &of_a = a[u][tile];
      multiply_tile(c[u][tile], low.x, high.x, low.y, high.y, of_a.x, of_a.y);
      multiply_tile(c[u][tile], low.z, high.z, low.w, high.w, of_a.z, of_a.w);
    }
}

// A warp's sums, to (rows, kPitch): lane 4 g + t has columns 2t and 2t + 1 of the tile, rows of a, at rows
// g and g + 8, columns of c.
template <int kPitch, int kTiles>
__device__ void store_sums(float* to, const float (&c)[2][kTiles][4]) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      to[(tile * 8 + lane % 4 * 2 + e % 2) * kPitch + lane / 4 + e / 2 * 8] = c[0][tile][e] + c[1][tile][e];
}

// Two numbers of bf16 in a word.
__device__ inline float2 floats_of(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}
__device__ inline uint32_t pair_of(float x, float y) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
  return pair;
}
__device__ inline float sum_of_squares(const uint4& x) {
  float sum = 0;
  for (const uint32_t pair : {x.x, x.y, x.z, x.w}) {
    const float2 v = floats_of(pair);
    sum += v.x * v.x + v.y * v.y;
  }
  return sum;
}
// x s gain, rounded.
__device__ inline uint4 normed(const uint4& x, float s, const float4 (&gain)[2]) {
  const float2 a = floats_of(x.x), b = floats_of(x.y), c = floats_of(x.z), d = floats_of(x.w);
  return {
      pair_of(a.x * s * gain[0].x, a.y * s * gain[0].y), pair_of(b.x * s * gain[0].z, b.y * s * gain[0].w),
      pair_of(c.x * s * gain[1].x, c.y * s * gain[1].y), pair_of(d.x * s * gain[1].z, d.y * s * gain[1].w)};
}
__device__ inline float rounded(float x) { return static_cast<float>(static_cast<bf16>(x)); }

// The gate's sum and that of what it lets through, each rounded as the ops by themselves would.
__device__ inline float gated(float gate, float up) {
  gate = rounded(gate);
  return gate * sigmoid_for<bf16>(gate) * rounded(up);
}

// A norm's x: what a warp holds of a's rows, windows warp, warp + 8, ... of `windows`, is normed in place.
// norm: of so many in a row. gain: in shared memory, seen behind the first of the two barriers, or null.
// squares: room for (kMostWindows, kTiles * 8).
template <int kTiles, class Meet>
__device__ void norm_held(uint4 (&x)[kHeld][2][kTiles], float* squares, const float* gain, int windows,
                          int packs, int norm, float eps, Meet meet) {
  const int warp = static_cast<int>(threadIdx.x / kWarp), lane = static_cast<int>(threadIdx.x % kWarp),
            group = lane / 4;
  constexpr int kRows = kTiles * 8;
  const bool whole = norm == packs * 8;
  float own[kHeld][kTiles];
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      own[i][tile] = sum_of_squares(x[i][0][tile]) + sum_of_squares(x[i][1][tile]);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    if (whole) own[0][tile] += own[1][tile] + own[2][tile] + own[3][tile];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (whole && i > 0) break;
      for (int step = 1; step < 4; step *= 2) own[i][tile] += __shfl_xor_sync(~0u, own[i][tile], step);
      if (lane % 4 == 0) squares[(i * kFewWarps + warp) * kRows + tile * 8 + group] = own[i][tile];
    }
  }
  meet();
  // No division in the loop: a window's number times this, less the last 16 bits, is that of its norm.
  const int alike = norm / (kWindow * 8), inverse = whole ? 0 : 65536 / alike + 1;
  const float per_element = 1.0f / static_cast<float>(norm);
  float s[kTiles];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int window = i * kFewWarps + warp;
    if (window >= windows) break;
    const int first = whole ? 0 : (window * inverse >> 16) * alike;  // windows of the same norm begin there
    if (!whole || i == 0)
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const float* from = squares + first * kRows + tile * 8 + group;
        float sum = 0;
        if (whole) {
#pragma unroll
          for (int j = 0; j < kFewWarps; ++j) sum += from[j * kRows];
        } else {
#pragma unroll 1
          for (int j = 0; j < alike; ++j) sum += from[j * kRows];
        }
        s[tile] = rsqrtf(sum * per_element + eps);
      }
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const int own_pack = lane % 4 + 4 * u;
      if (window * kWindow + own_pack >= packs) continue;
      float4 g[2] = {{1, 1, 1, 1}, {1, 1, 1, 1}};
      if (gain != nullptr) {
        const auto* from =
            reinterpret_cast<const float4*>(gain) + 2 * ((window - first) * kWindow + own_pack);
        g[0] = from[0], g[1] = from[1];
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) x[i][u][tile] = normed(x[i][u][tile], s[tile], g);
    }
  }
  meet();  // nobody needs the gain any more
}

}  // namespace weft::cuda
