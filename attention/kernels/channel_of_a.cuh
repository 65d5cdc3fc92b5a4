#pragma once
// A chunk of a sweep whose gate is of the channels of a and b: o and dv.

#include "attention/kernels/channel_tiles.cuh"

namespace weft::cuda {

// One warp, for block n and the channels [64 part, 64 part + 64): its part of the scores; a and b carried to
// the block's borders, in place; the decay over the block. Two channels a lane.
template <bool Reverse, class M>
__device__ void prepare_a(const M& memory, const typename M::Stage& g, int n, int part) {
  const int l = threadIdx.x % 32, row0 = n * block, channel = 64 * part + 2 * l;
  float2 level[block], sum{0, 0};  // the sum of gates from the block's start
  uint32_t a[block], b[block];
  auto place = [&](const auto& tile, int i) { return tile.at(row0 + i, channel / 8) + channel % 8 * 2; };
#pragma unroll
  for (int i = 0; i < block; ++i) {
    const float2 gate = load_shared_pair(g.gates.at(row0 + i, channel));
    sum.x += to_log2(gate.x), sum.y += to_log2(gate.y);
    level[i] = sum;
    a[i] = load_shared_word(place(g.a, i)), b[i] = load_shared_word(place(g.b, i));
  }

  Scores raw, scores;
  raw.clear();
  raw.add_products(g.a, g.b, row0, part);
#pragma unroll
  for (int c = 0; c < 2; ++c)
#pragma unroll
    for (int i = 0; i < 4; ++i) scores.x[c][i] = Scores::row(i) == Scores::column(c, i) ? raw.x[c][i] : 0;

  __syncwarp();  // the gates have been read: their place is free
#pragma unroll
  for (int half = block / 2; half >= 1; half /= 2) {
    // One side's tokens have the rows of a, the other's those of b.
    const Tile<block, 64> sides{g.gates.block_of(part, n) +
                                (half == 8 || half == 2 ? 0 : Tile<block, 64>::bytes)};
#pragma unroll
    for (int i = 0; i < block; ++i) {
      const bool second = i & half;
      const float2 at = level[border(i, half)];
      const float2 f = second ? exp2_between(level[i], at) : exp2_between(at, level[i]);
      store_shared(sides.at(i, l / 4) + l % 4 * 4, weighted(second != Reverse ? a[i] : b[i], f));
    }
    __syncwarp();
    Scores products;
    products.clear();
    products.add_products(sides, sides, 0, 0);
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (meets<Reverse>(Scores::row(i), Scores::column(c, i), half)) scores.x[c][i] = products.x[c][i];
  }
  memory.scores().store(n, part, scores);

#pragma unroll
  for (int i = 0; i < block; ++i) {
    const float2 up = exp2_between(level[i], {0, 0}), down = exp2_between(sum, level[i]);
    store_shared(place(g.a, i), weighted(a[i], Reverse ? down : up));
    store_shared(place(g.b, i), weighted(b[i], Reverse ? up : down));
  }
  store_shared_pair(memory.total(n, channel), exp2_between(sum, {0, 0}));
}

// One warp: block n of its columns.
template <bool Reverse, int D_a, class M>
__device__ void step_a(WarpState<D_a>& state, const Place& at, const M& memory, const typename M::Stage& g,
                       int n, int warp) {
  const Lane lane;
  const int l = threadIdx.x % 32, row0 = n * block;
  uint32_t c[4], p[4];
  load_columns(c, g.c, row0, warp);
  memory.scores().load(n).masked(p, [](int, int) { return true; });
  Scores out, even;
  out.clear(), even.clear();
  WarpProducts::mma(out.x[0], p, c[0], c[2]);
  WarpProducts::mma(out.x[1], p, c[1], c[3]);
#pragma unroll
  for (int k = 0; k < D_a / 16; ++k) {
    uint32_t a[4];
    load_matrices(a, g.a.at(row0 + l % 16, 2 * k + l / 16));
    const auto &s0 = state.x[2 * k], &s1 = state.x[2 * k + 1];
    Scores& to = k % 2 ? out : even;
    WarpProducts::mma(to.x[0], a, pack(s0[0], s0[1]), pack(s1[0], s1[1]));
    WarpProducts::mma(to.x[1], a, pack(s0[2], s0[3]), pack(s1[2], s1[3]));
  }
#pragma unroll
  for (int k = 0; k < D_a / 16; ++k) {
    uint32_t b[4];
    load_matrices_transposed(b, g.b.at(row0 + l % 16, 2 * k + l / 16));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      auto& s = state.x[2 * k + half];
      const float2 total = load_shared_pair(memory.total(n, 16 * k + 8 * half + 2 * lane.t));
      s[0] *= total.x, s[1] *= total.y, s[2] *= total.x, s[3] *= total.y;
      WarpProducts::mma(s, c, b[2 * half], b[2 * half + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) out.x[i / 4][i % 4] = at.s.scale * (out.x[i / 4][i % 4] + even.x[i / 4][i % 4]);
  store_block(g.c, out, row0, warp);
}

}  // namespace weft::cuda
