#pragma once
// The gradient of a gate for each channel, on the way of dq and dk (channel_sweep.h).

#include "attention/kernels/channel_tiles.cuh"

namespace weft::cuda {

// What a block's output means for the gate, in a lane's two channels: the products dot * out; in reverse,
// their differences from those that dq left, summed over later tokens.
template <bool Reverse>
struct GateGradientLane {
  double later[2] = {};
  const __nv_bfloat16* rows;     // of dot, token g of the chunk's first block taken
  float* sums;                   // the same of the gradient
  int64_t rows_step, sums_step;  // eight tokens

  struct Rows {
    uint32_t dot[2];
    float2 before[2];
  };

  __device__ void start(const Place& at, int share) {
    const float* ends = at.sweep.end_sums + (int64_t(at.document) * at.s.heads + at.head) * at.s.d_c +
                        at.column0 + 8 * share + 2 * Lane().t;
    later[0] = ends[0], later[1] = ends[1];
  }
  __device__ void start_chunk(const Place& at, int share, int64_t token0) {
    const Lane lane;
    const int64_t column = int64_t(at.head) * at.s.d_c + at.column0 + 8 * share + 2 * lane.t;
    const int64_t pitch = int64_t(at.s.heads) * at.s.d_c;
    if (Reverse) token0 += chunk - block;
    rows = static_cast<const __nv_bfloat16*>(at.sweep.dot.data) + (token0 + lane.g) * at.sweep.dot.pitch +
           column;
    sums = at.sweep.gate_gradient + (token0 + lane.g) * pitch + column;
    rows_step = 8 * at.sweep.dot.pitch, sums_step = 8 * pitch;
  }
  // Of the block taken at this turn, with `valid` tokens.
  __device__ Rows fetch(int turn, int valid) const {
    const int to_block = (Reverse ? -2 : 2) * turn;
    Rows of;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      of.dot[r] = 0, of.before[r] = {0, 0};
      if (Lane().g + 8 * r >= valid) continue;
      of.dot[r] = *reinterpret_cast<const uint32_t*>(rows + (to_block + r) * rows_step);
      if (Reverse) of.before[r] = *reinterpret_cast<const float2*>(sums + (to_block + r) * sums_step);
    }
    return of;
  }
  __device__ void store(int turn, int valid, const Rows& of, const float (&out)[4]) {
    const int l = threadIdx.x % 32, to_block = (Reverse ? -2 : 2) * turn;
    float x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 dot = unpack(of.dot[i / 2]), before = of.before[i / 2];
      const float product = out[i] * (i % 2 ? dot.y : dot.x);
      x[i] = Reverse ? (i % 2 ? before.y : before.x) - product : product;
    }
    if (Reverse) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float other = __shfl_down_sync(~0u, x[i], step);
          if (l + step < 32) x[i] += other;
        }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float first = __shfl_sync(~0u, x[j], l % 4), second = __shfl_sync(~0u, x[j + 2], l % 4);
        const auto behind = static_cast<float>(later[j]);
        x[j] = behind + (second + x[j]), x[j + 2] += behind;
        later[j] += first + second;
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (Lane().g + 8 * r < valid)
        *reinterpret_cast<float2*>(sums + (to_block + r) * sums_step) = {x[2 * r], x[2 * r + 1]};
  }
};

}  // namespace weft::cuda
