#pragma once
// A chunk whose decays one anchor can serve (README, "One anchor for a chunk"). Both ways of every pair of
// tokens go by the middle of the chunk's decay: a row is carried from its token to there, or back, by one
// factor for each channel, and what is left is a chunk without any decay. One of two tokens then has a factor
// above 1, so this is for chunks that nowhere decay by more than 2^-`anchored_log2` a half.

#include "attention/kernels/channel_gate_gradient.cuh"

namespace weft::cuda {

// Products of two factors and of bf16 rows stay far below the end of f32.
constexpr float anchored_log2 = 50;

__device__ inline float log2_of(float gate) { return 1.44269504f * gate; }
// Whether the longest way from the anchor is too long, or the whole is not a number.
__device__ inline bool too_far(float longest, float total) {
  return !(fabsf(total) <= 2 * anchored_log2 && longest <= anchored_log2);
}
// Where block `later` of tokens meets block `earlier`.
__device__ constexpr int score_block(int later, int earlier) { return later * (later + 1) / 2 + earlier; }

// Of P's diagonal, which no decay is in, one warp's share of the channels: from rows that were not rounded once
// more on their way to the anchor.
template <int warps, int D_a, class M>
__device__ void diagonal_part(const M& memory, const typename M::Stage& g, int warp) {
  constexpr int parts = warps / blocks, steps = D_a / 16 / parts;
  static_assert(parts <= M::diagonal_parts && steps >= 1);
  const Lane lane;
  const int n = warp % blocks, part = warp / blocks;
  Scores scores;
  scores.clear();
  scores.template add_products<steps>(g.a, g.b, n * block, part * steps * 2);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (Scores::same(i / 2, i))
      store_shared(memory.diagonal(part, n * block + lane.g + i / 2 * 8), __float_as_uint(scores.x[i / 2][i]));
}

// All that one warp has of P: block `task` of them, as a pair of bf16 operands. If the gate is of a's channels
// its diagonal comes in so many parts.
template <bool Reverse, int D_a, int diagonal_parts, class M>
__device__ void anchored_scores(const M& memory, const typename M::Stage& g, int task) {
  const int l = threadIdx.x % 32, later = task < 1 ? 0 : task < 3 ? 1 : task < 6 ? 2 : 3,
            earlier = task - score_block(later, 0), row = Reverse ? earlier : later,
            column = Reverse ? later : earlier;
  Scores scores, rest;
  scores.clear(), rest.clear();
#pragma unroll
  for (int k = 0; k < D_a / 16; ++k) {
    uint32_t a[4], b[4];
    load_matrices(a, g.a.at(row * block + l % 16, 2 * k + l / 16));
    load_matrices(b, g.b.at(column * block + l % 16, 2 * k + l / 16));
    Scores& sum = k % 2 ? rest : scores;
    WarpProducts::mma(sum.x[0], a, b[0], b[2]);
    WarpProducts::mma(sum.x[1], a, b[1], b[3]);
  }
  scores.add(rest);
  if (diagonal_parts > 0 && later == earlier) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!Scores::same(i / 2, i)) continue;
      float& x = scores.x[i / 2][i];
      x = 0;
#pragma unroll
      for (int part = 0; part < diagonal_parts; ++part)
        x += load_shared_float(memory.diagonal(part, later * block + Lane().g + i / 2 * 8));
    }
  }
  uint32_t high[4], low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Split p = scores.quarter(i / 2, i % 2 * 2, [&](int n, int j) {
      return later != earlier || Scores::sees<Reverse>(n, j);
    });
    high[i] = p.high, low[i] = p.rest;
  }
  store_shared_words(memory.score_block(task, 0), high);
  store_shared_words(memory.score_block(task, 1), low);
}

// Of a's gate: two channels of a run of tokens, one thread's.
template <bool Reverse, int threads, int D_a>
struct AnchoredRows {
  static constexpr int runs = threads / (D_a / 2), tokens = chunk / runs;
  static_assert(8 % tokens == 0 || tokens % 8 == 0);
  float2 way[tokens];  // log2: up to a token; then from the anchor to it

  __device__ static int channel() { return threadIdx.x % (D_a / 2) * 2; }
  __device__ static int run() { return threadIdx.x / (D_a / 2); }

  // Leaves the run's sum at sums, f32 (runs, D_a).
  template <class G>
  __device__ void start(const G& g, uint32_t sums) {
    // Addresses of rows behind a run's first, which is a multiple of four or eight, differ by constants.
    const uint32_t first = g.gates.at(run() * tokens, channel());
    float2 sum{0, 0};
#pragma unroll
    for (int i = 0; i < tokens; ++i) {
      const float2 gate = load_shared_pair((first ^ (((i ^ (i >> 1)) & 3) << 5)) + i * 128);
      sum.x += log2_of(gate.x), sum.y += log2_of(gate.y);
      way[i] = sum;
    }
    store_shared_pair(sums + (run() * D_a + channel()) * 4, sum);
  }
  // After all runs have started: whether one anchor cannot serve. Leaves the decay between it and either
  // border, which is the same, at `middles`, f32 (D_a).
  __device__ bool meet(uint32_t sums, uint32_t middles) {
    float2 before{0, 0}, total{0, 0};
#pragma unroll
    for (int r = 0; r < runs; ++r) {
      const float2 sum = load_shared_pair(sums + (r * D_a + channel()) * 4);
      if (r < run()) before.x += sum.x, before.y += sum.y;
      total.x += sum.x, total.y += sum.y;
    }
    const float2 shift{before.x - total.x / 2, before.y - total.y / 2};
    float longest = 0;
#pragma unroll
    for (int i = 0; i < tokens; ++i) {
      way[i].x += shift.x, way[i].y += shift.y;
      longest = fmaxf(longest, fmaxf(fabsf(way[i].x), fabsf(way[i].y)));
      if (Reverse) way[i] = {-way[i].x, -way[i].y};
    }
    if (run() == 0) store_shared_pair(middles + channel() * 4, {exp2_fast(total.x / 2), exp2_fast(total.y / 2)});
    return too_far(longest, total.x) || too_far(longest, total.y);
  }
  // a and b carried to the anchor, in place.
  template <class G>
  __device__ void carry(const G& g) const {
    const uint32_t first = g.a.at(run() * tokens, channel() / 8) + channel() % 8 * 2;
#pragma unroll
    for (int i = 0; i < tokens; ++i) {
      const uint32_t a = (first ^ ((i & 7) << 4)) + i * 128, b = a + (g.b.address - g.a.address);
      const float2 w = way[i];
      store_shared(a, weighted(load_shared_word(a), {exp2_fast(w.x), exp2_fast(w.y)}));
      store_shared(b, weighted(load_shared_word(b), {exp2_fast(-w.x), exp2_fast(-w.y)}));
    }
  }
};

// One of a pair of warps: its columns of c, a and b being at the anchor.
template <bool Reverse, int D_a, class M>
__device__ void step_anchored_a(WarpState<D_a>& state, const Place& at, const M& memory,
                                const typename M::Stage& g, int pair, int share) {
  const Lane lane;
  const int l = threadIdx.x % 32, a0 = share * (D_a / 2);
  const uint32_t of_a = g.a.at(l % 16, a0 / 8 + l / 16);
  uint32_t c[blocks][4];
  Scores past[blocks];
#pragma unroll
  for (int m = 0; m < blocks; ++m) load_columns(c[m], g.c, m * block_bytes, pair, share), past[m].clear();
#pragma unroll
  for (int k = 0; k < D_a / 32; ++k) {
    auto &s0 = state.x[2 * k], &s1 = state.x[2 * k + 1];
    const float2 f0 = load_shared_pair(memory.total(0, a0 + 16 * k + 2 * lane.t)),
                 f1 = load_shared_pair(memory.total(0, a0 + 16 * k + 8 + 2 * lane.t));
    auto scale = [&] {
      s0[0] *= f0.x, s0[1] *= f0.y, s0[2] *= f0.x, s0[3] *= f0.y;
      s1[0] *= f1.x, s1[1] *= f1.y, s1[2] *= f1.x, s1[3] *= f1.y;
    };
    scale();
    uint32_t right[2][2];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      right[i][0] = pack(s0[2 * i], s0[2 * i + 1]), right[i][1] = pack(s1[2 * i], s1[2 * i + 1]);
#pragma unroll
    for (int m = 0; m < blocks; ++m) {
      const uint32_t from = (of_a ^ (k << 5)) + m * block_bytes;
      uint32_t a[4], b[4];
      load_matrices(a, from);
      load_matrices_transposed(b, from + (g.b.address - g.a.address));
#pragma unroll
      for (int i = 0; i < 2; ++i) WarpProducts::mma(past[m].x[i], a, right[i][0], right[i][1]);
      WarpProducts::mma(s0, c[m], b[0], b[1]);
      WarpProducts::mma(s1, c[m], b[2], b[3]);
    }
    scale();
  }
  // Each warp finishes its own half of the columns.
#pragma unroll
  for (int m = 0; m < blocks; ++m) store_shared_floats(memory.handed(pair, 2 * m + share), past[m].x[1]);
#pragma unroll
  for (int m = 0; m < blocks; ++m)
#pragma unroll
    for (int n = 0; n < blocks; ++n) {
      if (Reverse ? n < m : n > m) continue;
#pragma unroll
      for (int rest = 0; rest < 2; ++rest) {
        const uint4 p = load_shared(memory.score_block(score_block(std::max(m, n), std::min(m, n)), rest));
        WarpProducts::mma(past[m].x[0], {p.x, p.y, p.z, p.w}, c[n][0], c[n][2]);
      }
    }
  sync_pair(pair);
#pragma unroll
  for (int m = 0; m < blocks; ++m) {
    const float4 other = load_shared_floats(memory.handed(pair, 2 * m + 1 - share));
    auto& out = past[m].x[0];
    out[0] += other.x, out[1] += other.y, out[2] += other.z, out[3] += other.w;
    for (float& x : out) x *= at.s.scale;
    store_half(g.c, out, m * block_bytes, pair, share);
  }
}

// Of c's gate: one half of a pair's columns. A lane has channel g of the tokens 2t + j + 8 i of each block, as
// rows of c^T are an operand.
template <bool Reverse>
struct AnchoredColumns {
  float way[blocks][2][2];  // log2, from the anchor to a token
  float total = 0;          // log2, of the chunk

  // Whether one anchor cannot serve.
  template <class G>
  __device__ bool start(const G& g, int pair, int share) {
    const Lane lane;
    const int l = threadIdx.x % 32;
    uint32_t from[2];
    places(from, g, pair, share);
#pragma unroll
    for (int m = 0; m < blocks; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float first = log2_of(load_shared_float(from[0] + m * block_bytes + i * 1024)),
                    second = log2_of(load_shared_float(from[1] + m * block_bytes + i * 1024));
        float sum = first + second;
#pragma unroll
        for (int step = 1; step < 4; step *= 2) {
          const float other = __shfl_up_sync(~0u, sum, step, 4);
          if (lane.t >= step) sum += other;
        }
        const float up = __shfl_up_sync(~0u, sum, 1, 4);
        way[m][i][0] = total + (lane.t ? up + first : first), way[m][i][1] = total + sum;
        total += __shfl_sync(~0u, sum, l | 3);
      }
    float longest = 0;
#pragma unroll
    for (int m = 0; m < blocks; ++m)
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        float& x = way[m][n / 2][n % 2];
        x = Reverse ? total / 2 - x : x - total / 2;
        longest = fmaxf(longest, fabsf(x));
      }
    return too_far(longest, total);
  }
  // c carried to the anchor, as pairs of bf16: cut values in place, rests in a column of their own. The ways
  // take the gates' place.
  template <class M>
  __device__ void carry(const M& memory, const typename M::Stage& g, int pair, int share) const {
    const Lane lane;
    const int l = threadIdx.x % 32;
    uint32_t to[2];
    places(to, g, pair, share);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t place = g.c.at(32 * h + l, 2 * pair + share);
      uint32_t c[4], rest[4];
      load_matrices_transposed(c, place);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const auto& w = way[2 * h + n / 2][n % 2];
        const float2 v = unpack(c[n]);
        const Split split(v.x * exp2_fast(-w[0]), v.y * exp2_fast(-w[1]));
        c[n] = split.high, rest[n] = split.rest;
#pragma unroll
        for (int j = 0; j < 2; ++j)
          store_shared(to[j] + (2 * h + n / 2) * block_bytes + n % 2 * 1024, __float_as_uint(w[j]));
      }
      store_matrices_transposed(place, c);
      store_matrices_transposed(memory.rest(pair, share, 32 * h + l), rest);
    }
    if (lane.t == 0)
      store_shared(memory.total(0, 16 * pair + 8 * share + lane.g), __float_as_uint(exp2_fast(total / 2)));
  }

 private:
  template <class G>
  __device__ static void places(uint32_t (&at)[2], const G& g, int pair, int share) {
    const Lane lane;
    for (int j = 0; j < 2; ++j) at[j] = g.gates.at(2 * lane.t + j, 16 * pair + 8 * share + lane.g);
  }
};

// One of a pair of warps: its columns of a chunk that has `valid` tokens, c being at the anchor. State and
// rows of c are read as pairs of bf16.
template <bool Reverse, int D_a, class M>
__device__ void step_anchored_c(WarpState<D_a>& state, GateGradientLane<Reverse>& gradient, const Place& at,
                                const M& memory, const typename M::Stage& g, int valid, int pair,
                                int share) {
  const Lane lane;
  const int l = threadIdx.x % 32;
  const uint32_t of_a = g.a.at(l % 16, share * (D_a / 16) + l / 16);
  const float middle[2] = {load_shared_float(memory.total(0, 16 * pair + 8 * share + lane.g)),
                           load_shared_float(memory.total(0, 16 * pair + 8 * (1 - share) + lane.g))};
  auto scale_state = [&] {
#pragma unroll
    for (auto& s : state.x) s[0] *= middle[0], s[1] *= middle[0], s[2] *= middle[1], s[3] *= middle[1];
  };
  scale_state();
  Scores past[blocks];
#pragma unroll
  for (Scores& p : past) p.clear();
#pragma unroll
  for (int k = 0; k < D_a / 32; ++k) {
    const auto &s0 = state.x[2 * k], &s1 = state.x[2 * k + 1];
    const Split right[2][2] = {{{s0[0], s0[1]}, {s1[0], s1[1]}}, {{s0[2], s0[3]}, {s1[2], s1[3]}}};
#pragma unroll
    for (int m = 0; m < blocks; ++m) {
      uint32_t a[4];
      load_matrices(a, (of_a ^ (k << 5)) + m * block_bytes);
#pragma unroll
      for (int i = 0; i < 2; ++i) WarpProducts::mma(past[m].x[i], a, right[i][0].high, right[i][1].high);
#pragma unroll
      for (int i = 0; i < 2; ++i) WarpProducts::mma(past[m].x[i], a, right[i][0].rest, right[i][1].rest);
    }
  }
  // Each warp finishes its own half of the columns.
#pragma unroll
  for (int m = 0; m < blocks; ++m) store_shared_floats(memory.handed(pair, 2 * m + share), past[m].x[1]);
  typename GateGradientLane<Reverse>::Rows before[blocks];
#pragma unroll
  for (int turn = 0; turn < blocks; ++turn) {
    const int m = Reverse ? blocks - 1 - turn : turn;
    before[m] = gradient.fetch(turn, at.sweep.gate_gradient ? valid - m * block : 0);
  }
#pragma unroll
  for (int n = 0; n < blocks; ++n) {
    uint32_t c[4], low[4];
    load_columns(c, g.c, n * block_bytes, pair, share);
    load_matrices_transposed(low, memory.rest(pair, l / 8 % 2 ^ share, n * block + l / 16 * 8 + l % 8));
#pragma unroll
    for (int m = 0; m < blocks; ++m) {
      if (Reverse ? n < m : n > m) continue;
      const int of = score_block(std::max(m, n), std::min(m, n));
      const uint4 p = load_shared(memory.score_block(of, 0)), rest = load_shared(memory.score_block(of, 1));
      auto& out = past[m].x[0];
      WarpProducts::mma(out, {p.x, p.y, p.z, p.w}, c[0], c[2]);
      WarpProducts::mma(out, {p.x, p.y, p.z, p.w}, low[0], low[2]);
      WarpProducts::mma(out, {rest.x, rest.y, rest.z, rest.w}, c[0], c[2]);
    }
#pragma unroll
    for (int k = 0; k < D_a / 32; ++k) {
      uint32_t b[4];
      load_matrices_transposed(b, (of_a ^ (k << 5)) + n * block_bytes + (g.b.address - g.a.address));
#pragma unroll
      for (int half = 0; half < 2; ++half)
        WarpProducts::mma(state.x[2 * k + half], c, b[2 * half], b[2 * half + 1]);
#pragma unroll
      for (int half = 0; half < 2; ++half)
        WarpProducts::mma(state.x[2 * k + half], low, b[2 * half], b[2 * half + 1]);
    }
  }
  scale_state();
  sync_pair(pair);  // what was handed over is there, and c has been read
  const uint32_t of_rows = g.gates.at(lane.g, 16 * pair + 8 * share + 2 * lane.t);
#pragma unroll
  for (int turn = 0; turn < blocks; ++turn) {
    const int m = Reverse ? blocks - 1 - turn : turn;
    const float4 other = load_shared_floats(memory.handed(pair, 2 * m + 1 - share));
    const float2 up = load_shared_pair(of_rows + m * block_bytes),
                 down = load_shared_pair(of_rows + m * block_bytes + 1024);
    auto& out = past[m].x[0];
    out[0] = at.s.scale * exp2_fast(up.x) * (out[0] + other.x);
    out[1] = at.s.scale * exp2_fast(up.y) * (out[1] + other.y);
    out[2] = at.s.scale * exp2_fast(down.x) * (out[2] + other.z);
    out[3] = at.s.scale * exp2_fast(down.y) * (out[3] + other.w);
    store_half(g.c, out, m * block_bytes, pair, share);
    if (at.sweep.gate_gradient) gradient.store(turn, valid - m * block, before[m], out);
  }
}

}  // namespace weft::cuda
