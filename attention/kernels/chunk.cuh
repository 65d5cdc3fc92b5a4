#pragma once
// One chunk of 64 tokens of a sweep (sweep.h), written over the tiles of tile.cuh: StatePart and OutputPart,
// each for one warpgroup.
//
// With c_i the log2 decay summed over the chunk up to token i, and S the state at the chunk's near border:
//
//   P   = A B^T  masked, times exp2(c_i - c_j)         out = scale * (rise_i (A S) + P C)
//   S  <- total * S + B^T (weight_j C)                 rise_i, weight_j, total: powers of two <= 1 (README)
//
// S stays in StatePart's registers in f32; a bf16 shadow of it in shared memory is what OutputPart's A S
// reads. Exact: the shadow and weight_j C are sums of two bf16, high + rest, which the gradient of a gate
// needs (README).

#include "attention/kernels/sweep.h"
#include "attention/kernels/tile.cuh"

namespace weft::cuda {

constexpr int chunk = 64;

// The decays of one chunk, in shared memory.
struct Decays {
  float level[chunk];   // P_ij carries exp2(level_i - level_j)
  float weight[chunk];  // from token j to the far border; 0 past the document's end
  float total;          // from border to border
  float shift;          // from the near border to token i: exp2(level_i + shift)
  float unused[2];
};

// One warp's part: two tokens a lane. Tokens at and after `valid` belong to another document.
struct DecayLane {
  float first, both;

  __device__ void fetch(const Sweeps& s, int64_t token0, int valid, int head) {
    const int i = 2 * (threadIdx.x % 32);
    first = i < valid ? log2_decay(s, token0 + i, head) : 0;
    both = first + (i + 1 < valid ? log2_decay(s, token0 + i + 1, head) : 0);
  }
  // Summed up to this lane's tokens, and over the chunk.
  struct Levels {
    float up[2], total;
  };
  __device__ Levels levels() const {
    float sum = both;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const float other = __shfl_up_sync(~0u, sum, step);
      if (threadIdx.x % 32 >= step) sum += other;
    }
    return {{sum - both + first, sum}, __shfl_sync(~0u, sum, 31)};
  }
  __device__ void write(Decays& d, bool reverse, int valid) const {
    const int lane = threadIdx.x % 32;
    const Levels of = levels();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = 2 * lane + i;
      const float up = of.up[i], down = fminf(of.total - up, 0.f);
      const bool inside = token < valid;
      d.level[token] = !reverse ? up : inside ? -up : INFINITY;
      d.weight[token] = inside ? exp2_fast(reverse ? up : down) : 0;
    }
    if (lane == 0) d.total = exp2_fast(of.total), d.shift = reverse ? of.total : 0;
  }
};

// Where a step stands in the sequence and in memory.
struct Place {
  const Sweeps& s;
  const Sweep& sweep;
  int document, head, column0;
};

// Rows at and after `valid` become zero.
template <int R, int C>
__device__ void copy_in(Tile<R, C> tile, const Rows& rows, int64_t first, int valid, int64_t column) {
  for (int i = threadIdx.x; i < R * C / 8; i += blockDim.x) {
    const int row = i / (C / 8), unit = i % (C / 8);
    const int64_t at = (first + (row < valid ? row : 0)) * rows.pitch + column + unit * 8;
    copy_async(tile.at(row, unit), static_cast<const __nv_bfloat16*>(rows.data) + at, row < valid);
  }
}

// bf16 S^T in shared memory; `rest` only if Exact.
template <int D_a, int W>
struct Shadow {
  Tile<64 * W, D_a> high, rest;
};

// The state of one sweep, transposed: S^T (64 W, D_a).
template <class Products, int D_a, int W, bool Exact>
struct StatePart {
  static constexpr int N = D_a == 64 ? 64 : 128, parts = D_a / N;  // columns of one product
  Accumulator<N> state[W][parts];

  // f(value, offset in the states of memory) over this thread's part of the state.
  template <class F>
  __device__ void each(const Place& at, F f) {
    const Lane lane;
    const int64_t base = (int64_t(at.document) * at.s.heads + at.head) * at.s.d_a * at.s.d_c;
    const int a_step = at.sweep.transposed ? 1 : at.s.d_c, c_step = at.sweep.transposed ? at.s.d_a : 1;
#pragma unroll
    for (int w = 0; w < W; ++w)
#pragma unroll
      for (int part = 0; part < parts; ++part)
#pragma unroll
        for (int n = 0; n < N / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int of_a = N * part + 8 * n + 2 * lane.t + i % 2;
            const int of_c = at.column0 + 64 * w + lane.row() + (i / 2) * 8;
            f(state[w][part].x[n][i], base + of_a * a_step + of_c * c_step);
          }
  }
  __device__ void load(const Place& at) {
    for (auto& rows : state)
      for (auto& part : rows) part.fill(0);
    if (at.sweep.state_in)
      each(at, [&](float& x, int64_t i) { x = at.sweep.state_in_scale * at.sweep.state_in[i]; });
  }
  // At the sweep's end: the state itself, and its dot product with sweep.end_dot, one number a warp.
  __device__ void finish(const Place& at) {
    if (at.sweep.state_out)
      each(at, [&](float& x, int64_t i) { at.sweep.state_out[i] = at.sweep.state_out_scale * x; });
    if (!Exact || !at.sweep.end_dot) return;
    float sum = 0;
    each(at, [&](float& x, int64_t i) { sum += x * at.sweep.end_dot[i]; });
#pragma unroll
    for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    const int of = at.column0 / 64 / W * 4 + Lane().warp;
    if (threadIdx.x % 32 == 0)
      at.sweep.end_sums[(int64_t(of) * at.s.documents + at.document) * at.s.heads + at.head] = sum;
  }
  __device__ void store_shadow(Shadow<D_a, W> shadow) const {
#pragma unroll
    for (int w = 0; w < W; ++w)
#pragma unroll
      for (int n = 0; n < parts; ++n) {
        const auto high = shadow.high.template part<N>(n), rest = shadow.rest.template part<N>(n);
        if constexpr (Exact)
          store_split(high, rest, 64 * w, state[w][n]);
        else
          store(high, 64 * w, state[w][n]);
      }
  }

  // S^T <- total * S^T + (weight_j C)^T B
  __device__ void update(Tile<chunk, D_a> b, Tile<chunk, 64 * W> c, const Decays& decays) {
#pragma unroll
    for (int w = 0; w < W; ++w) {
      const Weighted<chunk> weighted = load_transposed<Exact>(c.template part<64>(w), decays.weight);
#pragma unroll
      for (int n = 0; n < parts; ++n) {
        state[w][n].scale(decays.total, decays.total);
        start(w, n, weighted, b);
      }
      Products::commit();
    }
    wait();
  }
  // Of one block of 64 columns of c, in two steps: S^T <- S^T + weighted B
  __device__ void start(Tile<chunk, D_a> b, const Weighted<chunk>& weighted) {
#pragma unroll
    for (int n = 0; n < parts; ++n) start(0, n, weighted, b);
    Products::commit();
  }
  __device__ void wait() {
    Products::template wait<0>();
#pragma unroll
    for (int w = 0; w < W; ++w)
#pragma unroll
      for (int n = 0; n < parts; ++n) Products::settle(state[w][n]);
  }

 private:
  __device__ void start(int w, int n, const Weighted<chunk>& weighted, Tile<chunk, D_a> b) {
    Products::start(state[w][n]);
    Products::add_a_b(state[w][n], weighted.high, b.template part<N>(n));
    if constexpr (Exact) Products::add_a_b(state[w][n], weighted.rest, b.template part<N>(n));
  }
};

// scores -> the bf16 operand scale * P
__device__ inline Operand<chunk> weigh(const Accumulator<64>& scores, const Decays& d, bool reverse,
                                       float log2_scale) {
  const Lane lane;
  const int row = lane.row(), sign = reverse ? -1 : 1;
  const float from[2] = {d.level[row] + log2_scale, d.level[row + 8] + log2_scale};
  Operand<chunk> p;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const int column = 8 * n + 2 * lane.t;
    const float2 to = *reinterpret_cast<const float2*>(d.level + column);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int distance = row + 8 * half - column;
      const float x = scores.x[n][2 * half] * exp2_fast(from[half] - to.x);
      const float y = scores.x[n][2 * half + 1] * exp2_fast(from[half] - to.y);
      p.x[n / 2][(n % 2) * 2 + half] =
          pack(distance * sign >= 0 ? x : 0.f, (distance - 1) * sign >= 0 ? y : 0.f);
    }
  }
  return p;
}

// The output (64, 64 W) of one chunk. `sync` says when tiles and the shadow are there, and hears when the
// shadow has been read. In turn: begin, wait_scores, compute, finish; the next chunk begins before this one
// finishes.
template <class Products, int D_a, int W, bool Exact>
struct OutputPart {
  Accumulator<64 * W> out;
  Accumulator<64> scores;
  Operand<D_a> left;

  __device__ void begin(Tile<chunk, D_a> a, Tile<chunk, D_a> b) {
    left = load(a);
    Products::start(scores);
    Products::a_bt(scores, left, b, false);
    Products::commit();
  }
  __device__ void wait_scores() {
    Products::template wait<0>();
    Products::settle(scores);
  }
  template <class Sync>
  __device__ void compute(const Place& at, Tile<chunk, 64 * W> c, Shadow<D_a, W> shadow, const Decays& decays,
                          const Sync& sync) {
    sync.wait_shadow();
    Products::start(out);
    Products::a_bt(out, left, shadow.high, false);
    if constexpr (Exact) Products::a_bt(out, left, shadow.rest, true);
    Products::commit();

    sync.wait_decays();
    const float log2_scale = at.s.log2_scale;
    const Operand<chunk> p = weigh(scores, decays, at.sweep.reverse, log2_scale);
    Products::template wait<0>();
    Products::settle(out);
    sync.shadow_read();
    const float* level = decays.level + Lane().row();
    out.scale(exp2_fast(level[0] + decays.shift + log2_scale),
              exp2_fast(level[8] + decays.shift + log2_scale));

    sync.wait_c();
    Products::start(out);
    Products::add_a_b(out, p, c);
    Products::commit();
  }
  // Pending: 1 if the next chunk has begun since.
  template <int Pending>
  __device__ void finish() {
    Products::template wait<Pending>();
    Products::settle(out);
  }

  // The row sums of dot * out.
  __device__ void store_dots(const Place& at, int64_t token0, int valid, Tile<chunk, 64 * W> dot) const {
    const Lane lane;
#pragma unroll
    for (int w = 0; w < W; ++w) {
      const float2 sums = row_dots(dot, out, w);
      float* to = at.sweep.dot_sums + ((at.column0 / 64 + w) * at.s.tokens + token0) * at.s.heads + at.head;
      if (lane.t == 0 && lane.row() < valid) to[int64_t(lane.row()) * at.s.heads] = sums.x;
      if (lane.t == 0 && lane.row() + 8 < valid) to[int64_t(lane.row() + 8) * at.s.heads] = sums.y;
    }
  }
  // In f32, to memory.
  __device__ void store_wide(const Place& at, int64_t token0, int valid) const {
    const Lane lane;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane.row() + 8 * half;
      if (row >= valid) continue;
      float* to = static_cast<float*>(at.sweep.out.data) + (token0 + row) * at.sweep.out.pitch +
                  int64_t(at.head) * at.s.d_c + at.column0 + 2 * lane.t;
#pragma unroll
      for (int n = 0; n < 8 * W; ++n)
        *reinterpret_cast<float2*>(to + 8 * n) = {out.x[n][2 * half], out.x[n][2 * half + 1]};
    }
  }
  // May overwrite a: a warp has read the rows it writes, and no others.
  __device__ void store_rounded(Tile<chunk, 64 * W> to) const {
    __syncwarp();
    store(to, 0, out);
  }
};

}  // namespace weft::cuda
