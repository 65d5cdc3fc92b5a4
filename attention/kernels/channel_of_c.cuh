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
// One warp, for its 16 channels: gates become their sum from the block's start, in log2.
template <class M>
__device__ void sum_gates(const typename M::Stage& g, int warp) {
  const int l = threadIdx.x % 32, row0 = l / 8 * block, channel = 16 * warp + l % 8 * 2;
  float2 sum{0, 0};
#pragma unroll
  for (int i = 0; i < block; ++i) {
    const uint32_t place = g.gates.at(row0 + i, channel);
    const float2 gate = load_shared_pair(place);
    sum.x += to_log2(gate.x), sum.y += to_log2(gate.y);
    store_shared_pair(place, sum);
  }
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

// Block n of one warp's 16 columns of c: the rows, and the levels (the gates' sums) where lanes hold elements
// of operands and of accumulators.
template <bool Reverse, class M>
struct Columns {
  const Lane lane;
  const typename M::Stage& g;
  const int row0, channel0;
  uint32_t c[4];        // tokens 2t and 2t + 1 (2, 3: and 8 more) of channels g (1, 3: and 8 more)
  float2 of_c[4];       // their levels
  float2 of_out[2][2];  // of channels 8 i + 2t and the next, tokens g and g + 8

  __device__ Columns(const typename M::Stage& g, int n, int warp)
      : g(g), row0(n * block), channel0(16 * warp) {
    load_columns(c, g.c, row0, warp);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = 2 * lane.t + i / 2 * 8;
      of_c[i] = {level_of_c(i, token), level_of_c(i, token + 1)};
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) of_out[i / 2][i % 2] = level_of_out(i / 2, lane.g + i % 2 * 8);
  }
  __device__ float level_of_c(int i, int token) const {
    return load_shared_float(g.gates.at(row0 + token, channel0 + lane.g + i % 2 * 8));
  }
  __device__ float2 level_of_out(int i, int token) const {
    return load_shared_pair(g.gates.at(row0 + token, channel0 + 8 * i + 2 * lane.t));
  }
  // Decay between a later and an earlier token; finite if they are the other way round.
  __device__ static float2 between(float2 later, float2 earlier) {
    return {exp2_fast(fminf(later.x - earlier.x, 0.f)), exp2_fast(fminf(later.y - earlier.y, 0.f))};
  }

  // The part of the output that comes from the block itself.
  __device__ Scores own(const Scores& scores) const {
    Scores out;
    out.clear();
    uint32_t p[4];
    scores.masked(p, [](int row, int column) { return row == column; });
#pragma unroll
    for (int i = 0; i < 2; ++i) WarpProducts::mma(out.x[i], p, c[i], c[i + 2]);
#pragma unroll
    for (int half = block / 2; half >= 1; half /= 2) {
      scores.masked(p, [&](int row, int column) { return meets<Reverse>(row, column, half); });
      const bool at_border = half == 1;  // of tokens side by side the earlier is the border
      Pair sources;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool missed = half == 8 && i / 2 != (Reverse ? 1 : 0);
        float2 weight{1, 1};
        if (!missed && (Reverse || !at_border)) {
          const float level = level_of_c(i, border(2 * lane.t + i / 2 * 8, half));
          weight = Reverse ? between(of_c[i], {level, level}) : between({level, level}, of_c[i]);
        }
        sources.set(i, missed ? 0 : c[i], weight);
      }
      Scores y;
      y.clear();
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        WarpProducts::mma(y.x[i], p, sources.high[i], sources.high[i + 2]);
        if (Reverse || !at_border) WarpProducts::mma(y.x[i], p, sources.rest[i], sources.rest[i + 2]);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          if (half == 8 && r != (Reverse ? 0 : 1)) continue;
          float2 weight{1, 1};
          if (!Reverse || !at_border) {
            const float2 level = level_of_out(i, border(lane.g + 8 * r, half));
            weight = Reverse ? between(level, of_out[i][r]) : between(of_out[i][r], level);
          }
          out.x[i][2 * r] += y.x[i][2 * r] * weight.x, out.x[i][2 * r + 1] += y.x[i][2 * r + 1] * weight.y;
        }
      }
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
    for (int i = 0; i < 2; ++i) {
      const float2 end = level_of_out(i, block - 1);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float2 way = Reverse ? exp2_between(end, of_out[i][r]) : exp2_between(of_out[i][r], {0, 0});
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int e = 2 * r + j;
          out.x[i][e] = scale * (out.x[i][e] + (j ? way.y : way.x) * (past.x[i][e] + rest.x[i][e]));
        }
      }
    }
  }

  // S^T <- total * S^T + (c carried to the block's far border)^T b
  template <int D_a>
  __device__ void update(WarpState<D_a>& state) const {
    const int l = threadIdx.x % 32;
    Pair carried;
    float total[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float end = level_of_c(i, block - 1);
      carried.set(i, c[i], Reverse ? exp2_between(of_c[i], {0, 0}) : exp2_between({end, end}, of_c[i]));
      total[i % 2] = exp2_fast(end);
    }
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
  const Columns<Reverse, M> columns(g, n, warp);
  Scores out = columns.own(memory.scores().load(n));
  columns.add_state(out, state, at.s.scale);
  columns.update(state);
  store_block(g.c, out, row0, warp);
  if (at.sweep.gate_gradient) gradient.store(at, token0 + row0, valid - row0, out);
}

}  // namespace weft::cuda
