#pragma once
// A chunk of a sweep whose gate is of the channels of c and the output: dq and dk, and with them dg.

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

// A bf16 operand and what was cut from it.
struct Pair {
  uint32_t high[4], rest[4];
  __device__ void set(int i, uint32_t value, float2 weight) {
    const float2 v = unpack(value);
    const Split split(v.x * weight.x, v.y * weight.y);
    high[i] = split.high, rest[i] = split.rest;
  }
};

// The sums over later tokens of the gate's gradient, for a lane's four channels.
struct Later {
  double x[2][2] = {};
};

// One warp: block n of its columns. State, and the rows of c that meet a's, are read as pairs of bf16
// (README, "The gradient of the gate").
template <bool Reverse, int D_a, class M>
__device__ void step_c(WarpState<D_a>& state, Later& later, const Place& at, const M& memory,
                       const typename M::Stage& g, int64_t token0, int valid, int n, int warp) {
  const Lane lane;
  const int l = threadIdx.x % 32, row0 = n * block, channel0 = 16 * warp;

  // An accumulator's columns are 8 i + 2 t and the next, its rows g and g + 8.
  const int64_t width = int64_t(at.s.heads) * at.s.d_c,
                column = int64_t(at.head) * at.s.d_c + at.column0 + 2 * lane.t;
  uint32_t dot[2][2] = {};
  float2 gradient[2][2] = {};
  if (at.sweep.gate_gradient)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (const int row = row0 + lane.g + 8 * half; row < valid)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const auto* rows = static_cast<const __nv_bfloat16*>(at.sweep.dot.data);
          dot[i][half] =
              *reinterpret_cast<const uint32_t*>(rows + (token0 + row) * at.sweep.dot.pitch + column + 8 * i);
          if (Reverse)
            gradient[i][half] = *reinterpret_cast<const float2*>(at.sweep.gate_gradient +
                                                                 (token0 + row) * width + column + 8 * i);
        }

  uint32_t c[4];  // tokens 2t, 2t + 1 (and 8 on: 2, 3) of channels g (and 8 on: 1, 3)
  load_columns(c, g.c, row0, warp);
  float2 level_in[4], level_out[2][2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = row0 + 2 * lane.t + i / 2 * 8, channel = channel0 + lane.g + i % 2 * 8;
    level_in[i] = {load_shared_float(g.gates.at(token, channel)),
                   load_shared_float(g.gates.at(token + 1, channel))};
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      level_out[i][half] =
          load_shared_pair(g.gates.at(row0 + lane.g + 8 * half, channel0 + 8 * i + 2 * lane.t));

  const Scores scores = memory.scores().load(n);
  Scores out;
  out.clear();
  uint32_t p[4];
  scores.masked(p, [](int row, int column) { return row == column; });
  WarpProducts::mma(out.x[0], p, c[0], c[2]);
  WarpProducts::mma(out.x[1], p, c[1], c[3]);
#pragma unroll
  for (int half = block / 2; half >= 1; half /= 2) {
    Pair to_border;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = row0 + border(2 * lane.t + i / 2 * 8, half);
      const float at_border = load_shared_float(g.gates.at(token, channel0 + lane.g + i % 2 * 8));
      const float2 own = level_in[i];
      const float2 weight = Reverse
                                ? float2{decay_between(own.x, at_border), decay_between(own.y, at_border)}
                                : float2{decay_between(at_border, own.x), decay_between(at_border, own.y)};
      to_border.set(i, c[i], weight);
    }
    scores.masked(p, [&](int row, int column) { return meets<Reverse>(row, column, half); });
    Scores y;
    y.clear();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      WarpProducts::mma(y.x[i], p, to_border.high[i], to_border.high[i + 2]);
      WarpProducts::mma(y.x[i], p, to_border.rest[i], to_border.rest[i + 2]);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float2 own = level_out[i][r];
        const float2 at_border =
            load_shared_pair(g.gates.at(row0 + border(lane.g + 8 * r, half), channel0 + 8 * i + 2 * lane.t));
        out.x[i][2 * r] +=
            y.x[i][2 * r] * (Reverse ? decay_between(at_border.x, own.x) : decay_between(own.x, at_border.x));
        out.x[i][2 * r + 1] += y.x[i][2 * r + 1] * (Reverse ? decay_between(at_border.y, own.y)
                                                            : decay_between(own.y, at_border.y));
      }
    }
  }

  Scores past, past_rest;
  past.clear(), past_rest.clear();
#pragma unroll
  for (int k = 0; k < D_a / 16; ++k) {
    uint32_t a[4];
    load_matrices(a, g.a.at(row0 + l % 16, 2 * k + l / 16));
    const auto &s0 = state.x[2 * k], &s1 = state.x[2 * k + 1];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Split low(s0[2 * i], s0[2 * i + 1]), high(s1[2 * i], s1[2 * i + 1]);
      WarpProducts::mma(past.x[i], a, low.high, high.high);
      WarpProducts::mma(past_rest.x[i], a, low.rest, high.rest);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float2 end = load_shared_pair(g.gates.at(row0 + block - 1, channel0 + 8 * i + 2 * lane.t));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 own = level_out[i][j / 2];
      const float from = j % 2 ? own.y : own.x, whole = j % 2 ? end.y : end.x;
      out.x[i][j] += exp2_fast(Reverse ? whole - from : from) * (past.x[i][j] + past_rest.x[i][j]);
      out.x[i][j] *= at.s.scale;
    }
  }

  Pair write;
  float total[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float whole = load_shared_float(g.gates.at(row0 + block - 1, channel0 + lane.g + i % 2 * 8));
    const float2 own = level_in[i];
    write.set(i, c[i], Reverse ? exp2_between(own, {0, 0}) : exp2_between({whole, whole}, own));
    total[i % 2] = exp2_fast(whole);
  }
#pragma unroll
  for (int k = 0; k < D_a / 16; ++k) {
    uint32_t b[4];
    load_matrices_transposed(b, g.b.at(row0 + l % 16, 2 * k + l / 16));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      auto& s = state.x[2 * k + half];
      s[0] *= total[0], s[1] *= total[0], s[2] *= total[1], s[3] *= total[1];
      WarpProducts::mma(s, write.high, b[2 * half], b[2 * half + 1]);
      WarpProducts::mma(s, write.rest, b[2 * half], b[2 * half + 1]);
    }
  }

  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t to = g.c.at(row0 + lane.g, 2 * warp + i) + 4 * lane.t;
    store_shared(to, pack(out.x[i][0], out.x[i][1]));
    store_shared(to + 1024, pack(out.x[i][2], out.x[i][3]));
  }
  if (!at.sweep.gate_gradient) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float x[4];  // the sums over this block's later tokens, in reverse
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 of = unpack(dot[i][j / 2]), before = gradient[i][j / 2];
      const float product = out.x[i][j] * (j % 2 ? of.y : of.x);
      x[j] = Reverse ? (j % 2 ? before.y : before.x) - product : product;
      if (Reverse)
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
          const float other = __shfl_down_sync(~0u, x[j], step);
          if (l + step < 32) x[j] += other;
        }
    }
    if (Reverse)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float first = __shfl_sync(~0u, x[j], lane.t), second = __shfl_sync(~0u, x[j + 2], lane.t);
        const double behind = later.x[i][j];
        x[j] = static_cast<float>(behind + (second + x[j]));
        x[j + 2] = static_cast<float>(behind + x[j + 2]);
        later.x[i][j] = behind + (first + second);
      }
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (const int row = row0 + lane.g + 8 * half; row < valid)
        *reinterpret_cast<float2*>(at.sweep.gate_gradient + (token0 + row) * width + column + 8 * i) = {
            x[2 * half], x[2 * half + 1]};
  }
}

}  // namespace weft::cuda
