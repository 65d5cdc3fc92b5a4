#pragma once
// The gradient of a gate for each channel, on the way of dq and dk (channel_sweep.h).

#include "attention/kernels/channel_tiles.cuh"

namespace weft::cuda {

// Of one warp, what a chunk of dk means for the gate of its 16 columns: the differences q * dq - k * dk,
// summed over later tokens. In the layout of rows of an accumulator: columns g and g + 8, tokens 8 n + 2 t
// and the next.
struct GateGradientLane {
  double later[2] = {};

  __device__ void start(const Place& at, int column0) {
    const float* ends = at.sweep.end_sums + (int64_t(at.document) * at.s.heads + at.head) * at.s.d_c +
                        at.column0 + column0 + Lane().g;
    later[0] = ends[0], later[1] = ends[8];
  }
  // Leaves the sums of a chunk where the ways were, `place` of the warp's columns.
  template <int D_c, class F>
  __device__ void sum(const Accumulator<chunk>& out, Tile<chunk, D_c> c, Tile<chunk, D_c> forward_out,
                      Tile<chunk, D_c> lost, Tile<chunk, D_c> dot, F place) {
    const int group = threadIdx.x / 128;
    float x[2][chunk / 8][2];
    auto operand = [&](Tile<chunk, D_c> tile) { return load_turned(tile.template part<64>(group)); };
    {
      const Operand<chunk> of_c = operand(c), rounded = operand(forward_out), rest = operand(lost),
                           of_dot = operand(dot);
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int n = 0; n < chunk / 8; ++n) {
          const int k = n / 2, r = n % 2 * 2 + half;
          const float2 q = unpack(of_c.x[k][r]), high = unpack(rounded.x[k][r]), low = unpack(rest.x[k][r]),
                       by = unpack(of_dot.x[k][r]);
          x[half][n][0] = q.x * (high.x + low.x) - by.x * out.x[n][2 * half];
          x[half][n][1] = q.y * (high.y + low.y) - by.y * out.x[n][2 * half + 1];
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float pair[chunk / 8], sum[chunk / 8];
#pragma unroll
      for (int n = 0; n < chunk / 8; ++n) pair[n] = x[half][n][0] + x[half][n][1];
      quad_sums(pair, sum, [&](int n, float, float behind) {
        x[half][n][0] = behind + pair[n], x[half][n][1] += behind;
      });
      const auto behind = static_cast<float>(later[half]);
      float all = 0;  // of the tokens behind, in this chunk
#pragma unroll
      for (int n = chunk / 8 - 1; n >= 0; --n) {
#pragma unroll
        for (int j = 0; j < 2; ++j)
          store_shared(place(half, j) + n * 1024, __float_as_uint(behind + (all + x[half][n][j])));
        all += sum[n];
      }
      later[half] += all;
    }
  }
  // After __syncwarp: to memory.
  template <int D>
  __device__ static void store(const Place& at, Gates<D> sums, int column0, int64_t token0, int valid) {
    const int l = threadIdx.x % 32;
    // Eight lanes that load at once have two rows whose permutations leave no bank to both.
    const int row = l / 8 + l / 4 % 2 * 4, column = 16 * (threadIdx.x / 32) + l % 4 * 4;
    const int64_t pitch = int64_t(at.s.heads) * at.s.d_c;
    float* to =
        at.sweep.gate_gradient + (token0 + row) * pitch + int64_t(at.head) * at.s.d_c + column0 + column;
    const uint32_t from = sums.at(row, column);
#pragma unroll
    for (int i = 0; i < chunk / 8; ++i, to += 8 * pitch)
      if (8 * i + row < valid) store_global(to, load_shared(from + i * 1024));
  }
};

}  // namespace weft::cuda
