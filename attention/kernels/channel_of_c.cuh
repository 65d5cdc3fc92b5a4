#pragma once
// A chunk of a sweep whose gate is of the channels of c and the output: dq and dk, and with them dg. Every
// warp decays its own 16 columns.

#include "attention/kernels/channel_tiles.cuh"

namespace weft::cuda {

// One warp, for block n and the channels [64 part, 64 part + 64) of a and b: its part of the scores.
template <class M>
__device__ void prepare_scores(const M& memory, const typename M::Stage& g, int n, int part) {
  Scores scores;
  scores.clear();
  scores.add_products(g.a, g.b, n * block, part);
  memory.scores().store(n, part, scores);
}
// A bf16 operand and what was cut from it (README, "The gradient of the gate").
struct Pair {
  uint32_t high[4], rest[4];
  __device__ void set(int i, uint32_t value, float2 weight) {
    const float2 v = unpack(value);
    const Split split(v.x * weight.x, v.y * weight.y);
    high[i] = split.high, rest[i] = split.rest;
  }
};

// The ways of a block's tokens to the border of their stretch: the decay on it, for stretches of `half`
// tokens and, from step to step, of twice as many. Upwards the border is where the stretch begins, and a way
// holds the token's own gate; downwards it is the end. `all` is the way with the own gate.
//
// Those of a lane's elements of an accumulator: channels 8 i + 2t + j, tokens g + 8 r.
template <bool Up>
struct RowWays {
  float all[2][2][2], way[2][2][2];

  template <class F>  // F(i, r): the decays of two channels
  __device__ void start(F decay) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 of = decay(n / 4, n / 2 % 2);
      const float own = n % 2 ? of.y : of.x;
      all[n / 4][n / 2 % 2][n % 2] = own, way[n / 4][n / 2 % 2][n % 2] = Up ? own : 1;
    }
  }
  __device__ void step(int half) {
    const Lane lane;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const int i = n / 4, r = n / 2 % 2, j = n % 2;
      if (half == 8) {
        if (r == (Up ? 0 : 1)) continue;
        extend(i, r, j, __shfl_sync(~0u, all[i][1 - r][j], (Up ? 7 : 0) * 4 + lane.t));
      } else {
        const float other =
            __shfl_sync(~0u, all[i][r][j], (border(lane.g, half) + (Up ? 0 : 1)) * 4 + lane.t);
        extend(i, r, j, bool(lane.g & half) == Up ? other : 1);
      }
    }
  }

 private:
  __device__ void extend(int i, int r, int j, float by) { all[i][r][j] *= by, way[i][r][j] *= by; }
};

// Those of a lane's elements of c^T as an operand: tokens 2t + j + 8 (i / 2), channels g + 8 (i % 2).
template <bool Up>
struct TokenWays {
  float all[4][2], way[4][2];

  template <class F>  // F(i, j): the decay
  __device__ void start(F decay) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float own = decay(n / 2, n % 2);
      all[n / 2][n % 2] = own, way[n / 2][n % 2] = Up ? own : 1;
    }
  }
  __device__ void step(int half) {
    const Lane lane;
    const int last = Up ? 1 : 0;  // of two tokens side by side, the one at the border
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (half == 1) {
        extend(i, last, all[i][1 - last]);
      } else if (half == 8) {
        if (i / 2 == last) {
          const float other = __shfl_sync(~0u, all[(i + 2) % 4][last], lane.g * 4 + (Up ? 3 : 0));
          extend(i, 0, other), extend(i, 1, other);
        }
      } else {
        const int from = (border(2 * lane.t, half) + (Up ? 0 : 1)) / 2;
        float other = __shfl_sync(~0u, all[i][last], lane.g * 4 + from);
        if (bool(2 * lane.t & half) != Up) other = 1;
        extend(i, 0, other), extend(i, 1, other);
      }
    }
  }
  // Over the block, after the last step: of channels g and g + 8.
  __device__ float total(int i) const {
    return Up ? __shfl_sync(~0u, all[2 + i][1], Lane().g * 4 + 3) : __shfl_sync(~0u, all[i][0], Lane().g * 4);
  }

 private:
  __device__ void extend(int i, int j, float by) { all[i][j] *= by, way[i][j] *= by; }
};

// Block n of one warp's 16 columns of c.
template <bool Reverse, class M>
struct Columns {
  const typename M::Stage& g;
  const int row0;
  uint32_t c[4];  // as TokenWays
  RowWays<!Reverse> of_out;
  TokenWays<Reverse> of_c;

  __device__ Columns(const typename M::Stage& g, int n, int warp) : g(g), row0(n * block) {
    const Lane lane;
    load_columns(c, g.c, row0, warp);
    of_out.start([&](int i, int r) {
      const float2 gate = load_shared_pair(g.gates.at(row0 + lane.g + 8 * r, 16 * warp + 8 * i + 2 * lane.t));
      return float2{decay_of(gate.x), decay_of(gate.y)};
    });
    of_c.start([&](int i, int j) {
      const int token = row0 + 2 * lane.t + j + i / 2 * 8;
      return decay_of(load_shared_float(g.gates.at(token, 16 * warp + lane.g + i % 2 * 8)));
    });
  }

  // The part of the output that comes from the block itself. Leaves the ways to the block's borders.
  __device__ Scores own(const Scores& scores) {
    Scores out;
    out.clear();
    uint32_t p[4];
    scores.masked(p, [](int row, int column) { return row == column; });
#pragma unroll
    for (int i = 0; i < 2; ++i) WarpProducts::mma(out.x[i], p, c[i], c[i + 2]);
#pragma unroll
    for (int half = 1; half < block; half *= 2) {
      scores.masked(p, [&](int row, int column) { return meets<Reverse>(row, column, half); });
      Pair sources;
#pragma unroll
      for (int i = 0; i < 4; ++i) sources.set(i, c[i], {of_c.way[i][0], of_c.way[i][1]});
      Scores y;
      y.clear();
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        WarpProducts::mma(y.x[i], p, sources.high[i], sources.high[i + 2]);
        // Downwards the first ways are 1 and leave no rest.
        if (Reverse || half > 1) WarpProducts::mma(y.x[i], p, sources.rest[i], sources.rest[i + 2]);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (half < 8 || e / 2 == (Reverse ? 0 : 1)) out.x[i][e] += y.x[i][e] * of_out.way[i][e / 2][e % 2];
      }
      of_out.step(half);
      of_c.step(half);
    }
    return out;
  }

  // out = scale * (out + what comes from the state)
  template <int D_a>
  __device__ void add_state(Scores& out, const WarpState<D_a>& state, float scale) const {
    const int l = threadIdx.x % 32;
    Scores past, rest;
    past.clear(), rest.clear();
#pragma unroll
    for (int k = 0; k < D_a / 16; ++k) {
      uint32_t a[4];
      load_matrices(a, g.a.at(row0 + l % 16, 2 * k + l / 16));
      const auto &s0 = state.x[2 * k], &s1 = state.x[2 * k + 1];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Split low(s0[2 * i], s0[2 * i + 1]), high(s1[2 * i], s1[2 * i + 1]);
        WarpProducts::mma(past.x[i], a, low.high, high.high);
        WarpProducts::mma(rest.x[i], a, low.rest, high.rest);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        out.x[i][e] = scale * (out.x[i][e] + of_out.way[i][e / 2][e % 2] * (past.x[i][e] + rest.x[i][e]));
  }

  // S^T <- total * S^T + (c carried to the block's far border)^T b
  template <int D_a>
  __device__ void update(WarpState<D_a>& state) const {
    const int l = threadIdx.x % 32;
    Pair carried;
#pragma unroll
    for (int i = 0; i < 4; ++i) carried.set(i, c[i], {of_c.way[i][0], of_c.way[i][1]});
    const float total[2] = {of_c.total(0), of_c.total(1)};
#pragma unroll
    for (int k = 0; k < D_a / 16; ++k) {
      uint32_t b[4];
      load_matrices_transposed(b, g.b.at(row0 + l % 16, 2 * k + l / 16));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        auto& s = state.x[2 * k + half];
        s[0] *= total[0], s[1] *= total[0], s[2] *= total[1], s[3] *= total[1];
        WarpProducts::mma(s, carried.high, b[2 * half], b[2 * half + 1]);
        WarpProducts::mma(s, carried.rest, b[2 * half], b[2 * half + 1]);
      }
    }
  }
};

// What a block's output means for the gate, in a lane's four channels: the products dot * out; in reverse,
// their differences from those that dq left, summed over later tokens.
template <bool Reverse>
struct GateGradientLane {
  double later[2][2] = {};
  uint32_t dot[2][2];
  float2 before[2][2];

  __device__ static float* place(const Place& at, int64_t token, int i) {
    return at.sweep.gate_gradient + (token * at.s.heads + at.head) * at.s.d_c + at.column0 + 8 * i +
           2 * Lane().t;
  }
  __device__ void start(const Place& at) {
    const float* sums =
        at.sweep.end_sums + (int64_t(at.document) * at.s.heads + at.head) * at.s.d_c + at.column0;
    for (int i = 0; i < 4; ++i) later[i / 2][i % 2] = sums[i / 2 * 8 + Lane().t * 2 + i % 2];
  }
  __device__ void fetch(const Place& at, int64_t token0, int valid) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = Lane().g + 8 * r;
        dot[i][r] = 0, before[i][r] = {0, 0};
        if (row >= valid) continue;
        const int64_t column = int64_t(at.head) * at.s.d_c + at.column0 + 8 * i + 2 * Lane().t;
        dot[i][r] = *reinterpret_cast<const uint32_t*>(static_cast<const __nv_bfloat16*>(at.sweep.dot.data) +
                                                       (token0 + row) * at.sweep.dot.pitch + column);
        if (Reverse) before[i][r] = *reinterpret_cast<const float2*>(place(at, token0 + row, i));
      }
  }
  __device__ void store(const Place& at, int64_t token0, int valid, const Scores& out) {
    const int l = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 of = unpack(dot[i][j / 2]);
        x[j] = out.x[i][j] * (j % 2 ? of.y : of.x);
        if (!Reverse) continue;
        x[j] = (j % 2 ? before[i][j / 2].y : before[i][j / 2].x) - x[j];
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
          const float other = __shfl_down_sync(~0u, x[j], step);
          if (l + step < 32) x[j] += other;
        }
      }
#pragma unroll
      for (int j = 0; Reverse && j < 2; ++j) {
        const float first = __shfl_sync(~0u, x[j], l % 4), second = __shfl_sync(~0u, x[j + 2], l % 4);
        x[j] = static_cast<float>(later[i][j] + (second + x[j]));
        x[j + 2] = static_cast<float>(later[i][j] + x[j + 2]);
        later[i][j] += first + second;
      }
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (const int row = Lane().g + 8 * r; row < valid)
          *reinterpret_cast<float2*>(place(at, token0 + row, i)) = {x[2 * r], x[2 * r + 1]};
    }
  }
};

// One warp: block n of its columns, of a chunk that begins at token0 and has `valid` tokens.
template <bool Reverse, int D_a, class M>
__device__ void step_c(WarpState<D_a>& state, GateGradientLane<Reverse>& gradient, const Place& at,
                       const M& memory, const typename M::Stage& g, int64_t token0, int valid, int n,
                       int warp) {
  const int row0 = n * block;
  if (at.sweep.gate_gradient) gradient.fetch(at, token0 + row0, valid - row0);
  Columns<Reverse, M> columns(g, n, warp);
  Scores out = columns.own(memory.scores().load(n));
  columns.add_state(out, state, at.s.scale);
  columns.update(state);
  store_block(g.c, out, row0, warp);
  if (at.sweep.gate_gradient) gradient.store(at, token0 + row0, valid - row0, out);
}

}  // namespace weft::cuda
