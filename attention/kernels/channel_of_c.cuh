#pragma once
// A chunk of a sweep whose gate is of the channels of c and the output: dq and dk, and with them dg. Every
// warp decays its own half of a pair's columns.

#include "attention/kernels/channel_tiles.cuh"

namespace weft::cuda {

// One warp, for block n: the scores of each token with itself and of the pairs of each level, as pairs of
// bf16. All that a level has lies in one or two quarters of 8 x 8; a quarter and its rest are the two halves
// of a left operand.
template <bool Reverse, int D_a, class M>
__device__ void prepare_c(const M& memory, const typename M::Stage& g, int n) {
  Scores scores, rest;
  scores.clear(), rest.clear();
  scores.template add_products<D_a / 32>(g.a, g.b, n * block, 0);
  rest.template add_products<D_a / 32>(g.a, g.b, n * block, D_a / 16);
  scores.add(rest);
  auto store = [&](int slot, Split first, Split second) {
    store_shared_words(memory.scores().at(n, slot), {first.high, first.rest, second.high, second.rest});
  };
  store(0, scores.quarter(0, 0, Scores::same), scores.quarter(1, 2, Scores::same));
#pragma unroll
  for (int level = 0; level < 4; ++level) {
    auto meet = [&](int n, int i) { return Scores::meet<Reverse>(n, i, 1 << level); };
    if (level < 3)
      store(level + 1, scores.quarter(0, 0, meet), scores.quarter(1, 2, meet));
    else
      store(level + 1, scores.quarter(Reverse, Reverse ? 0 : 2, meet), {0, 0});
  }
}

// The ways of a block's tokens to the border of their stretch: the decay on it, for stretches of `half`
// tokens and, from step to step, of twice as many. Upwards the border is where the stretch begins, and a way
// holds the token's own gate; downwards it is the end. `all` is the way with the own gate.
//
// Those of a lane's elements of 8 columns of an accumulator: channels 2t + j, tokens g + 8 r.
template <bool Up>
struct RowWays {
  float all[2][2], way[2][2];

  __device__ void start(const float2 (&decay)[2]) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float own = n % 2 ? decay[n / 2].y : decay[n / 2].x;
      all[n / 2][n % 2] = own, way[n / 2][n % 2] = Up ? own : 1;
    }
  }
  __device__ void step(int half) {
    const Lane lane;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int r = n / 2, j = n % 2;
      if (half == 8) {
        if (r == (Up ? 1 : 0)) extend(r, j, __shfl_sync(~0u, all[1 - r][j], (Up ? 7 : 0) * 4 + lane.t));
      } else {
        const float other = __shfl_sync(~0u, all[r][j], (border(lane.g, half) + (Up ? 0 : 1)) * 4 + lane.t);
        extend(r, j, bool(lane.g & half) == Up ? other : 1);
      }
    }
  }

 private:
  __device__ void extend(int r, int j, float by) { all[r][j] *= by, way[r][j] *= by; }
};

// Those of a lane's elements of eight rows of c^T as an operand: tokens 2t + j + 8 i, channel g.
template <bool Up>
struct TokenWays {
  float all[2][2], way[2][2];

  __device__ void start(const float (&decay)[2][2]) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float own = decay[n / 2][n % 2];
      all[n / 2][n % 2] = own, way[n / 2][n % 2] = Up ? own : 1;
    }
  }
  __device__ void step(int half) {
    const Lane lane;
    const int last = Up ? 1 : 0;  // of two tokens side by side, the one at the border
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (half == 1) {
        extend(i, last, all[i][1 - last]);
      } else if (half == 8) {
        if (i == last) {
          const float other = __shfl_sync(~0u, all[1 - i][last], lane.g * 4 + (Up ? 3 : 0));
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
  // Over the block, after the last step.
  __device__ float total() const {
    return __shfl_sync(~0u, Up ? all[1][1] : all[0][0], Lane().g * 4 + (Up ? 3 : 0));
  }

 private:
  __device__ void extend(int i, int j, float by) { all[i][j] *= by, way[i][j] *= by; }
};

// Two words of a bf16 operand, and of what was cut from it (README, "The gradient of the gate").
struct Pair {
  uint32_t high[2], rest[2];
  template <bool Up>
  __device__ Pair(const uint32_t (&c)[2], const TokenWays<Up>& ways) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 v = unpack(c[i]);
      const Split split(v.x * ways.way[i][0], v.y * ways.way[i][1]);
      high[i] = split.high, rest[i] = split.rest;
    }
  }
};

// 8 columns of c in block n: rows as TokenWays has them, and all ways.
template <bool Reverse>
struct Columns {
  uint32_t c[2];
  RowWays<!Reverse> of_out;
  TokenWays<Reverse> of_c;

  template <class G>
  __device__ Columns(const G& g, int n, int channel0) {
    const Lane lane;
    load_half(c, g.c, n * block_bytes, channel0);
    const uint32_t of_rows = g.gates.at(lane.g, channel0 + 2 * lane.t) + n * block_bytes;
    float2 rows[2];
    float tokens[2][2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      rows[j] = decay_of(load_shared_pair(of_rows + j * 1024));
      const uint32_t of_token = g.gates.at(2 * lane.t + j, channel0 + lane.g) + n * block_bytes;
#pragma unroll
      for (int i = 0; i < 2; ++i) tokens[i][j] = decay_of(load_shared_float(of_token + i * 1024));
    }
    of_out.start(rows), of_c.start(tokens);
  }

  // The part of the output that comes from the block itself. Leaves the ways to the block's borders.
  template <class L>
  __device__ void own(float (&out)[4], const L& scores, int n) {
    for (float& x : out) x = 0;
    {
      const uint4 p = load_shared(scores.at(n, 0));
      add_quarter(out[0], out[1], p.x, p.y, c[0]);
      add_quarter(out[2], out[3], p.z, p.w, c[1]);
    }
#pragma unroll
    for (int level = 0; level < 4; ++level) {
      const int half = 1 << level;
      const Pair sources(c, of_c);
      float y[4] = {};
      const uint4 p = load_shared(scores.at(n, level + 1));
      // Downwards the first ways are 1 and leave no rest.
      const bool rest = Reverse || level > 0;
      if (half == 8) {
        constexpr int from = Reverse ? 1 : 0, to = 2 - 2 * from;
        add_quarter(y[to], y[to + 1], p.x, p.y, sources.high[from], sources.rest[from], rest);
      } else {
        add_quarter(y[0], y[1], p.x, p.y, sources.high[0], sources.rest[0], rest);
        add_quarter(y[2], y[3], p.z, p.w, sources.high[1], sources.rest[1], rest);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (half < 8 || i / 2 == (Reverse ? 0 : 1)) out[i] += y[i] * of_out.way[i / 2][i % 2];
      of_out.step(half), of_c.step(half);
    }
  }

 private:
  // y0, y1 += (high + rest) (right + right_rest), of 8 x 8 scores.
  __device__ static void add_quarter(float& y0, float& y1, uint32_t high, uint32_t rest, uint32_t right,
                                     uint32_t right_rest = 0, bool with_rest = false) {
    float sums[4] = {};
    mma_half(sums, high, rest, right);
    if (with_rest) mma_half(sums, high, rest, right_rest);
    y0 += sums[0] + sums[2], y1 += sums[1] + sums[3];
  }
};

// One warp: block n of its 16 columns of c, from column0 on. State, and the rows of c that meet a's, are read
// as pairs of bf16. The output takes the gates' place.
template <bool Reverse, int D_a, class M>
__device__ void step_c(Accumulator<D_a>& state, const Place& at, const M& memory, const typename M::Stage& g,
                       int n, int column0) {
  const Lane lane;
  const int l = threadIdx.x % 32;
  Columns<Reverse> columns[2] = {{g, n, column0}, {g, n, column0 + 8}};
  __syncwarp();

  Scores past, rest;
  past.clear(), rest.clear();
#pragma unroll
  for (int k = 0; k < D_a / 16; ++k) {
    uint32_t a[4];
    load_matrices(a, g.a.at(l % 16, 2 * k + l / 16) + n * block_bytes);
    const auto &s0 = state.x[2 * k], &s1 = state.x[2 * k + 1];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Split low(s0[2 * i], s0[2 * i + 1]), high(s1[2 * i], s1[2 * i + 1]);
      WarpProducts::mma(past.x[i], a, low.high, high.high);
      WarpProducts::mma(rest.x[i], a, low.rest, high.rest);
    }
  }
  past.add(rest);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float out[4];
    columns[i].own(out, memory.scores(), n);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      out[j] = at.s.scale * (out[j] + columns[i].of_out.way[j / 2][j % 2] * past.x[i][j]);
    const uint32_t to = g.gates.at(lane.g, column0 + 8 * i + 2 * lane.t) + n * block_bytes;
    store_shared_pair(to, {out[0], out[1]});
    store_shared_pair(to + 1024, {out[2], out[3]});
  }

  // Carried to the block's far border.
  const Pair one(columns[0].c, columns[0].of_c), two(columns[1].c, columns[1].of_c);
  const uint32_t high[4] = {one.high[0], two.high[0], one.high[1], two.high[1]},
                 low[4] = {one.rest[0], two.rest[0], one.rest[1], two.rest[1]};
  const float total[2] = {columns[0].of_c.total(), columns[1].of_c.total()};
#pragma unroll
  for (int k = 0; k < D_a / 16; ++k) {
    uint32_t b[4];
    load_matrices_transposed(b, g.b.at(l % 16, 2 * k + l / 16) + n * block_bytes);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      auto& s = state.x[2 * k + half];
      s[0] *= total[0], s[1] *= total[0], s[2] *= total[1], s[3] *= total[1];
      WarpProducts::mma(s, high, b[2 * half], b[2 * half + 1]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
      WarpProducts::mma(state.x[2 * k + half], low, b[2 * half], b[2 * half + 1]);
  }
}

}  // namespace weft::cuda
