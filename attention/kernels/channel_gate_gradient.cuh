#pragma once
// The gradient of a gate for each channel, on the way of dq and dk (channel_sweep.h).

#include "attention/kernels/channel_tiles.cuh"

namespace weft::cuda {

// What a chunk's output means for the gate, of one warp's 16 columns from `column0` of the head's on: the
// products dot * out; in reverse, their differences from those that dq left, summed over later tokens. In the
// layout of rows of an accumulator: columns g and g + 8, tokens 8 n + 2 t and the next.
template <bool Reverse>
struct GateGradientLane {
  double later[2] = {};
  float before[2][chunk / 8][2];
  float* first;   // column g's of token 2 t
  int64_t pitch;  // a token

  __device__ void start(const Place& at, int column0) {
    const float* ends = at.sweep.end_sums + (int64_t(at.document) * at.s.heads + at.head) * at.s.d_c +
                        at.column0 + column0 + Lane().g;
    later[0] = ends[0], later[1] = ends[8];
  }
  // Of a chunk with `valid` tokens: what dq left of it.
  __device__ void fetch(const Place& at, int column0, int64_t token0, int valid) {
    const Lane lane;
    pitch = int64_t(at.s.heads) * at.s.d_c;
    first = at.sweep.gate_gradient + (token0 + 2 * lane.t) * pitch + int64_t(at.head) * at.s.d_c + at.column0 +
            column0 + lane.g;
    if constexpr (Reverse) {
#pragma unroll
      for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int token = 8 * n + 2 * lane.t + j;  // loads without branches, beside products that run
          const float* const from = first + int64_t(min(token, valid - 1) - 2 * lane.t) * pitch;
#pragma unroll
          for (int half = 0; half < 2; ++half) before[half][n][j] = token < valid ? from[8 * half] : 0;
        }
    }
  }
  __device__ void store(const Accumulator<chunk>& out, const Operand<chunk>& dot, int valid) {
    const Lane lane;
    const int l = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto behind = static_cast<float>(later[half]);
      float sum = 0;  // of the tokens behind, in this chunk
#pragma unroll
      for (int m = 0; m < chunk / 8; ++m) {
        const int n = Reverse ? chunk / 8 - 1 - m : m;
        const float2 of = unpack(dot.x[n / 2][n % 2 * 2 + half]);
        float x = out.x[n][2 * half] * of.x, y = out.x[n][2 * half + 1] * of.y;
        if (Reverse) {
          x = before[half][n][0] - x, y = before[half][n][1] - y;
          float tail = x + y;
#pragma unroll
          for (int step = 1; step < 4; step *= 2) {
            const float other = __shfl_down_sync(~0u, tail, step, 4);
            if (lane.t + step < 4) tail += other;
          }
          const float next = __shfl_down_sync(~0u, tail, 1, 4);
          x = behind + (sum + tail);
          y = behind + (sum + (lane.t < 3 ? next + y : y));
          sum += __shfl_sync(~0u, tail, l & ~3);
        }
        const int token = 8 * n + 2 * lane.t;
        if (token < valid) first[(8 * n) * pitch + 8 * half] = x;
        if (token + 1 < valid) first[(8 * n + 1) * pitch + 8 * half] = y;
      }
      if (Reverse) later[half] += sum;
    }
  }
};

}  // namespace weft::cuda
