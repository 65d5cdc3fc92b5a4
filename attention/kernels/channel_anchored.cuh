#pragma once
// A chunk whose decays one anchor can serve (channel_gate.md, "One anchor for a chunk"). Both ways of every
// pair of tokens go by the middle of the chunk's decay: a row is carried from its token to there, or back, by
// one factor for each channel, and what is left is a chunk without any decay. One of two tokens then has a
// factor above 1, so this is for chunks that nowhere decay by more than 2^-`anchored_log2` a half.

#include "attention/kernels/channel_tiles.cuh"

namespace weft::cuda {

// Products of two factors and of bf16 rows stay far below the end of f32.
constexpr float anchored_log2 = 50;

__device__ inline float log2_of(float gate) { return 1.44269504f * gate; }
// Whether the longest way from the anchor is too long, or the whole is not a number.
__device__ inline bool too_far(float longest, float total) {
  return !(fabsf(total) <= 2 * anchored_log2 && longest <= anchored_log2);
}

// Of P's diagonal, which no decay is in, one warp's share of the channels: from rows that were not rounded
// once more on their way to the anchor.
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
      store_shared(memory.diagonal(part, n * block + lane.g + i / 2 * 8),
                   __float_as_uint(scores.x[i / 2][i]));
}

// Of a's gate: two channels of a run of tokens, one thread's.
template <bool Reverse, int threads, int D_a>
struct AnchoredRows {
  static constexpr int runs = threads / (D_a / 2), tokens = chunk / runs;
  static_assert(tokens % 8 == 0);
  float2 way[tokens];  // log2: up to a token; then from the anchor to it

  __device__ static int channel() { return threadIdx.x % (D_a / 2) * 2; }
  __device__ static int run() { return threadIdx.x / (D_a / 2); }

  // Leaves the run's sum at sums, f32 (runs, D_a).
  template <class G>
  __device__ void start(const G& g, uint32_t sums) {
    // Addresses of rows behind a run's first, which is a multiple of eight, differ by constants.
    const uint32_t first = g.gates.at(run() * tokens, channel());
    float2 sum{0, 0};
#pragma unroll
    for (int i = 0; i < tokens; ++i) {
      const float2 gate = load_shared_pair((first ^ ((i & 7) << 4)) + i * 128);
      sum.x += log2_of(gate.x), sum.y += log2_of(gate.y);
      way[i] = sum;
    }
    store_shared_pair(sums + (run() * D_a + channel()) * 4, sum);
  }
  // After all runs have started: whether one anchor cannot serve. At `decays`, f32 (2, D_a), leaves what the
  // state is scaled by: first with the decay between the anchor and either border, which is the same, then
  // `owed` alone.
  __device__ bool meet(uint32_t sums, uint32_t decays, float2& owed) {
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
    if (run() == 0) {
      const float2 middle{exp2_fast(total.x / 2), exp2_fast(total.y / 2)};
      store_shared_pair(decays + channel() * 4, multiply(owed, middle));
      store_shared_pair(decays + (D_a + channel()) * 4, owed);
      owed = middle;
    }
    return too_far(longest, total.x) || too_far(longest, total.y);
  }
  // a and b carried to the anchor, in place.
  template <class G>
  __device__ void carry(const G& g) const {
    const uint32_t first = g.a.at(run() * tokens, channel() / 8) + channel() % 8 * 2;
    auto place = [&](int i) { return (first ^ ((i & 7) << 4)) + i * 128; };
    const uint32_t to_b = g.b.address - g.a.address;
#pragma unroll
    for (int i0 = 0; i0 < tokens; i0 += 8) {
      uint32_t a[8], b[8];  // all loads first: none waits behind a store
#pragma unroll
      for (int i = 0; i < 8; ++i)
        a[i] = load_shared_word(place(i0 + i)), b[i] = load_shared_word(place(i0 + i) + to_b);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float2 w = way[i0 + i];
        store_shared(place(i0 + i), weighted(a[i], {exp2_fast(w.x), exp2_fast(w.y)}));
        store_shared(place(i0 + i) + to_b, weighted(b[i], {exp2_fast(-w.x), exp2_fast(-w.y)}));
      }
    }
  }
};

// Of c's gate: a warp's 16 columns, in the layout of rows of an accumulator (columns g and g + 8 of the warp;
// tokens 8 n + 2 t and the next), which is that of rows of c^T as a left operand, too.
template <bool Reverse>
struct AnchoredColumns {
  float way[2][chunk / 8][2];  // log2, from the anchor to a token
  float total[2] = {};         // log2, of the chunk

  // Whether one anchor cannot serve.
  template <class G>
  __device__ bool start(const G& g, int column0) {
    bool far = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t from[2] = {place(g, column0, half, 0), place(g, column0, half, 1)};
      auto& w = way[half];
      // Eight sums abreast: a shuffle waits for the one before it otherwise.
      float pair[chunk / 8], sum[chunk / 8];
#pragma unroll
      for (int n = 0; n < chunk / 8; ++n) {
        w[n][0] = log2_of(load_shared_float(from[0] + n * 1024));
        pair[n] = w[n][0] + log2_of(load_shared_float(from[1] + n * 1024));
      }
      quad_sums(pair, sum,
                [&](int n, float before, float) { w[n][0] += before, w[n][1] = pair[n] + before; });
#pragma unroll
      for (int n = 0; n < chunk / 8; ++n) {
        w[n][0] += total[half], w[n][1] += total[half];
        total[half] += sum[n];
      }
      float longest = 0;
#pragma unroll
      for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
        for (float& x : way[half][n]) {
          x = Reverse ? total[half] / 2 - x : x - total[half] / 2;
          longest = fmaxf(longest, fabsf(x));
        }
      far = far || too_far(longest, total[half]);
    }
    return far;
  }
  // Their c^T carried to the anchor, as pairs of bf16. The ways take the gates' place.
  template <class G>
  __device__ void carry(const G& g, int column0, Operand<chunk>& high, Operand<chunk>& rest) const {
    const auto c = g.c.template part<64>(threadIdx.x / 128);
#pragma unroll
    for (int k = 0; k < chunk / 16; ++k) {
      uint32_t rows[4];
      load_turned(rows, c, k);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int half = r % 2, n = 2 * k + r / 2;
        const auto& w = way[half][n];
        const float2 v = unpack(rows[r]);
        const Split split(v.x * exp2_fast(-w[0]), v.y * exp2_fast(-w[1]));
        high.x[k][r] = split.high, rest.x[k][r] = split.rest;
#pragma unroll
        for (int j = 0; j < 2; ++j)
          store_shared(place(g, column0, half, j) + n * 1024, __float_as_uint(w[j]));
      }
    }
  }
  // Where a lane has something of the columns g + 8 half for the tokens 2t + j and, 1024 bytes apart, 8
  // behind.
  template <class G>
  __device__ static uint32_t place(const G& g, int column0, int half, int j) {
    const Lane lane;
    return g.gates.at(2 * lane.t + j, column0 + 8 * half + lane.g);
  }
};

}  // namespace weft::cuda
