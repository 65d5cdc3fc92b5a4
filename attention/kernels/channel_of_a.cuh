#pragma once
// A chunk of a sweep whose gate is of the channels of a and b: o and dv.

#include "attention/kernels/channel_tiles.cuh"

namespace weft::cuda {

// f(i, way) for every token of a block: the decay on its way to the border in the middle of its stretch of 2
// half tokens, from two channels' decays by token.
template <int half, class F>
__device__ void ways_to_middle(const float2 (&decay)[block], F f) {
#pragma unroll
  for (int middle = half; middle < block; middle += 2 * half) {
    float2 way{1, 1};
#pragma unroll
    for (int i = middle; i < middle + half; ++i) f(i, way = multiply(way, decay[i]));
    way = {1, 1};
#pragma unroll
    for (int i = middle - 1; i >= middle - half; --i) f(i, way), way = multiply(way, decay[i]);
  }
}

// One warp, for block n and the channels [64 part, 64 part + 64): its part of the scores; a and b carried to
// the block's borders, in place; the decay over the block. Two channels a lane.
template <bool Reverse, class M>
__device__ void prepare_a(const M& memory, const typename M::Stage& g, int n, int part) {
  const int l = threadIdx.x % 32, row0 = n * block, channel = 64 * part + 2 * l;
  float2 decay[block];
  uint32_t a[block], b[block];
  auto place = [&](const auto& tile, int i) { return tile.at(row0 + i, channel / 8) + channel % 8 * 2; };
#pragma unroll
  for (int i = 0; i < block; ++i) {
    const float2 gate = load_shared_pair(g.gates.at(row0 + i, channel));
    decay[i] = {decay_of(gate.x), decay_of(gate.y)};
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
  auto add_level = [&]<int half>() {
    // One side's tokens have the rows of a, the other's those of b.
    const Tile<block, 64> sides{g.gates.block_of(part, n) +
                                (half == 8 || half == 2 ? 0 : Tile<block, 64>::bytes)};
    ways_to_middle<half>(decay, [&](int i, float2 way) {
      const bool of_a = bool(i & half) != Reverse;
      store_shared(sides.at(i, l / 4) + l % 4 * 4, weighted(of_a ? a[i] : b[i], way));
    });
    __syncwarp();
    Scores products;
    products.clear();
    products.add_products(sides, sides, 0, 0);
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (meets<Reverse>(Scores::row(i), Scores::column(c, i), half)) scores.x[c][i] = products.x[c][i];
  };
  add_level.template operator()<8>(), add_level.template operator()<4>();
  add_level.template operator()<2>(), add_level.template operator()<1>();
  memory.scores().store(n, part, scores);

  float2 up{1, 1}, down{1, 1};
#pragma unroll
  for (int i = 0; i < block; ++i) {
    up = multiply(up, decay[i]);
    store_shared(place(Reverse ? g.b : g.a, i), weighted(Reverse ? b[i] : a[i], up));
  }
#pragma unroll
  for (int i = block - 1; i >= 0; --i) {
    store_shared(place(Reverse ? g.a : g.b, i), weighted(Reverse ? a[i] : b[i], down));
    down = multiply(down, decay[i]);
  }
  store_shared_pair(memory.total(n, channel), up);
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
