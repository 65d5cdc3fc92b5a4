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
  float* first;  // column g's of token 2 t
  int pitch;     // a token

  __device__ void start(const Place& at, int column0) {
    const float* ends = at.sweep.end_sums + (int64_t(at.document) * at.s.heads + at.head) * at.s.d_c +
                        at.column0 + column0 + Lane().g;
    later[0] = ends[0], later[1] = ends[8];
  }
  // Of a chunk with `valid` tokens: what dq left of it.
  __device__ void fetch(const Place& at, int column0, int64_t token0, int valid) {
    const Lane lane;
    pitch = at.s.heads * at.s.d_c;
    first = at.sweep.gate_gradient + (token0 + 2 * lane.t) * pitch + int64_t(at.head) * at.s.d_c +
            at.column0 + column0 + lane.g;
    if constexpr (Reverse) {
#pragma unroll
      for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int token = 8 * n + 2 * lane.t + j;  // loads without branches, beside products that run
          const float* const from = first + (min(token, valid - 1) - 2 * lane.t) * pitch;
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
      float x[chunk / 8][2];
#pragma unroll
      for (int n = 0; n < chunk / 8; ++n) {
        const float2 of = unpack(dot.x[n / 2][n % 2 * 2 + half]);
        x[n][0] = out.x[n][2 * half] * of.x, x[n][1] = out.x[n][2 * half + 1] * of.y;
      }
      if constexpr (Reverse) {  // eight sums abreast, as of the ways
        float tail[chunk / 8], other[chunk / 8];
#pragma unroll
        for (int n = 0; n < chunk / 8; ++n) {
          x[n][0] = before[half][n][0] - x[n][0], x[n][1] = before[half][n][1] - x[n][1];
          tail[n] = x[n][0] + x[n][1];
        }
#pragma unroll
        for (int step = 1; step < 4; step *= 2) {
#pragma unroll
          for (int n = 0; n < chunk / 8; ++n) other[n] = __shfl_down_sync(~0u, tail[n], step, 4);
#pragma unroll
          for (int n = 0; n < chunk / 8; ++n) tail[n] += lane.t + step < 4 ? other[n] : 0;
        }
#pragma unroll
        for (int n = 0; n < chunk / 8; ++n) other[n] = __shfl_down_sync(~0u, tail[n], 1, 4);
#pragma unroll
        for (int n = 0; n < chunk / 8; ++n) x[n][0] = tail[n], x[n][1] += lane.t < 3 ? other[n] : 0;
#pragma unroll
        for (int n = 0; n < chunk / 8; ++n) other[n] = __shfl_sync(~0u, tail[n], l & ~3);
        const auto behind = static_cast<float>(later[half]);
        float sum = 0;  // of the tokens behind, in this chunk
#pragma unroll
        for (int n = chunk / 8 - 1; n >= 0; --n) {
          x[n][0] = behind + (sum + x[n][0]), x[n][1] = behind + (sum + x[n][1]);
          sum += other[n];
        }
        later[half] += sum;
      }
#pragma unroll
      for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          if (8 * n + 2 * lane.t + j < valid) first[(8 * n + j) * pitch + 8 * half] = x[n][j];
    }
  }
};

}  // namespace weft::cuda
