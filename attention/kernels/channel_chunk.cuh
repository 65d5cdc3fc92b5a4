#pragma once
// A chunk of either kind of sweep, by a block of threads: with one anchor, or, where decays are far, in
// blocks of 16 tokens (channel_gate.md).

#include "attention/kernels/channel_anchored.cuh"
#include "attention/kernels/channel_gate_gradient.cuh"
#include "attention/kernels/channel_of_a.cuh"
#include "attention/kernels/channel_of_c.cuh"
#include "attention/kernels/hopper.cuh"

namespace weft::cuda {

// One warpgroup's share of P's columns, as pairs of bf16: of x, which all have, what tokens see.
template <bool Reverse, int W, class M>
__device__ void keep_scores(const Accumulator<chunk>& x, const M& memory) {
  const Lane lane;
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
  float diagonal[2] = {};
  if constexpr (M::diagonal_parts > 0)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < W; ++i)
        diagonal[half] += load_shared_float(memory.diagonal(i, lane.row() + 8 * half));
#pragma unroll
  for (int n = 0; n < chunk / 8; ++n) {
    if (n * W / 8 != group) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane.row() + 8 * half;
      float p[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int column = 8 * n + 2 * lane.t + j;
        p[j] = (Reverse ? column >= row : row >= column) ? x.x[n][2 * half + j] : 0;
        if (M::diagonal_parts > 0 && row == column) p[j] = diagonal[half];
      }
      const Split split(p[0], p[1]);
      const uint32_t to = memory.p(0).at(row, n) + 4 * lane.t;
      store_shared(to, split.high);
      store_shared(to + Tile<chunk, chunk>::bytes, split.rest);
    }
  }
}

// Of one warp, the tokens' rows of x^T, rounded, to the place of its 16 columns of c from column0 on.
template <int D_c>
__device__ void store_turned(Tile<chunk, D_c> c, const Accumulator<chunk>& x, int column0) {
  const int l = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < chunk / 8; n += 2)
    store_matrices_transposed(c.at(8 * (n + l / 16) + l % 8, column0 / 8 + l / 8 % 2),
                              {pack(x.x[n][0], x.x[n][1]), pack(x.x[n][2], x.x[n][3]),
                               pack(x.x[n + 1][0], x.x[n + 1][1]), pack(x.x[n + 1][2], x.x[n + 1][3])});
}

// What rounding takes from x.
__device__ inline Accumulator<chunk> lost_by_rounding(const Accumulator<chunk>& x) {
  Accumulator<chunk> lost;
#pragma unroll
  for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const float2 rounded = unpack(pack(x.x[n][i], x.x[n][i + 1]));
      lost.x[n][i] = x.x[n][i] - rounded.x, lost.x[n][i + 1] = x.x[n][i + 1] - rounded.y;
    }
  return lost;
}

// Of one warp, the 16 columns from column0 on of the tile's valid rows to memory.
template <int D_c>
__device__ void store_columns(__nv_bfloat16* to, int64_t pitch, Tile<chunk, D_c> from, int column0,
                              int valid) {
  const int row0 = threadIdx.x % 32 / 2, half = threadIdx.x % 2;
  to += row0 * pitch + half * 8;
  const uint32_t first = from.at(row0, column0 / 8 + half);
#pragma unroll
  for (int i = 0; i < chunk; i += 16, to += 16 * pitch)
    if (i + row0 < valid) store_global(to, load_shared(first + i * 128));
}

// The state's rows scaled by decays of the channels of a, f32 (D_a).
template <int D_a>
__device__ void scale_channels(Accumulator<D_a>& state, uint32_t decays) {
  const Lane lane;
#pragma unroll
  for (int n = 0; n < D_a / 8; ++n) {
    const float2 by = load_shared_pair(decays + (8 * n + 2 * lane.t) * 4);
    state.x[n][0] *= by.x, state.x[n][1] *= by.y, state.x[n][2] *= by.x, state.x[n][3] *= by.y;
  }
}

// A chunk of a sweep of_a. Its output takes c's place. owed: what of the last chunk's decay the state has not
// been scaled by, of this thread's channels. load_next: once the chunk is under way, before a barrier.
template <class Products, bool Reverse, int W, int D_a, class M, class Load>
__device__ void take_a(Accumulator<D_a>& state, float2& owed, const Place& at, const M& memory,
                       const typename M::Stage& g, Load load_next) {
  const int warp = threadIdx.x / 32;
  AnchoredRows<Reverse, 128 * W, D_a> rows;
  rows.start(g, memory.scores().address);
  diagonal_part<4 * W, D_a>(memory, g, warp);
  load_next();
  __syncthreads();
  if (__syncthreads_or(rows.meet(memory.scores().address, memory.total(0, 0), owed))) {
    scale_channels(state, memory.total(1, 0));
    owed = {1, 1};
    __syncthreads();
    for (int task = warp; task < blocks * M::parts; task += 4 * W)
      prepare_a<Reverse>(memory, g, task / M::parts, task % M::parts);
    __syncthreads();
    if (warp < blocks) sum_scores(memory, warp);
    __syncthreads();
    for (int i = 0; i < blocks; ++i)
      step_a<Reverse>(state, at, memory, g, Reverse ? blocks - 1 - i : i, 16 * warp);
    return;
  }
  scale_channels(state, memory.total(0, 0));
  Operand<D_a> rounded;
#pragma unroll
  for (int n = 0; n < D_a / 8; ++n) {
    uint32_t* const to = rounded.x[n / 2] + n % 2 * 2;
    to[0] = pack(state.x[n][0], state.x[n][1]), to[1] = pack(state.x[n][2], state.x[n][3]);
  }
  rows.carry(g);
  publish<Products>();
  __syncthreads();

  Accumulator<chunk> x, out;
  Products::start(x), Products::start(out), Products::start(state);
  Products::a_bt(x, TileRows<chunk, D_a>(g.a, 0), g.b, false);
  Products::commit();
  Products::a_bt(out, rounded, g.a, false);
  Products::commit();
  const Operand<chunk> c = load_turned(g.c.template part<64>(threadIdx.x / 128));
  Products::template wait<1>();
  Products::settle(x);
  keep_scores<Reverse, W>(x, memory);
  publish<Products>();
  __syncthreads();

  Products::fence();
  Products::a_bt(out, c, memory.p(0), true);
  Products::a_bt(out, c, memory.p(1), true);
  Products::commit();
  Products::add_a_b(state, c, g.b);
  Products::commit();
  Products::template wait<1>();
  Products::settle(out);
  out.scale(at.s.scale, at.s.scale);
  store_turned(g.c, out, 16 * warp);
  // Waited for before ways to take a chunk meet: the compiler would serialise all products otherwise.
  Products::template wait<0>();
  Products::settle(state);
}

// A chunk of a sweep of_c. Its output takes c's place, and the gate's gradient, in reverse, the gates'. State
// and rows of c are read as pairs of bf16. owed, load_next: as of take_a, of a lane's columns. ask_for_dot:
// once P's place is free. Products may go on with the state: wait for them.
template <class Products, bool Reverse, int W, int D_a, class M, class Load, class Ask, class Wait>
__device__ void take_c(Accumulator<D_a>& state, float2& owed, GateGradientLane& gradient, const Place& at,
                       const M& memory, const typename M::Stage& g, Load load_next, Ask ask_for_dot,
                       Wait wait_for_dot) {
  const int warp = threadIdx.x / 32, column0 = 16 * warp;
  Accumulator<chunk> x;
  Products::start(x);
  Products::a_bt(x, TileRows<chunk, D_a>(g.a, 0), g.b, false);
  Products::commit();
  AnchoredColumns<Reverse> columns;
  const bool far = columns.start(g, column0);
  load_next();
  Products::template wait<0>();
  Products::settle(x);
  if (__syncthreads_or(far)) {
    state.scale(owed.x, owed.y);
    owed = {1, 1};
    if (warp < blocks) prepare_c<Reverse, D_a>(memory, g, warp);
    __syncthreads();
    for (int i = 0; i < blocks; ++i)
      step_c<Reverse>(state, at, memory, g, Reverse ? blocks - 1 - i : i, column0);
    __syncwarp();
#pragma unroll
    for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        x.x[n][i] = load_shared_float(columns.place(g, column0, i / 2, i % 2) + n * 1024);
    ask_for_dot();
  } else {
    keep_scores<Reverse, W>(x, memory);
    Operand<chunk> high, rest;
    columns.carry(g, column0, high, rest);
    const float2 middle{exp2_fast(columns.total[0] / 2), exp2_fast(columns.total[1] / 2)};
    state.scale(owed.x * middle.x, owed.y * middle.y);
    owed = middle;
    Operand<D_a> cut, cut_rest;
#pragma unroll
    for (int n = 0; n < D_a / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Split split(state.x[n][2 * half], state.x[n][2 * half + 1]);
        cut.x[n / 2][n % 2 * 2 + half] = split.high, cut_rest.x[n / 2][n % 2 * 2 + half] = split.rest;
      }
    publish<Products>();
    __syncthreads();

    Products::start(x), Products::start(state);
    Products::a_bt(x, cut, g.a, false);
    Products::a_bt(x, cut_rest, g.a, true);
    Products::a_bt(x, high, memory.p(0), true);
    Products::a_bt(x, rest, memory.p(0), true);
    Products::a_bt(x, high, memory.p(1), true);
    Products::commit();
    Products::add_a_b(state, high, g.b);
    Products::add_a_b(state, rest, g.b);
    Products::commit();
    Products::template wait<1>();
    Products::settle(x);
    ask_for_dot();
#pragma unroll
    for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        x.x[n][i] *=
            at.s.scale * exp2_fast(load_shared_float(columns.place(g, column0, i / 2, i % 2) + n * 1024));
  }
  if (at.sweep.gate_gradient) {
    if constexpr (Reverse) {
      wait_for_dot();
      gradient.sum(x, g.c, memory.forward_out(), memory.lost(), memory.dot(),
                   [&](int half, int j) { return columns.place(g, column0, half, j); });
    } else {
      store_turned(memory.lost(), lost_by_rounding(x), column0);
    }
  }
  store_turned(g.c, x, column0);
}

}  // namespace weft::cuda
