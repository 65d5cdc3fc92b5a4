#pragma once
// A chunk of a sweep whose gate is of the channels of a and b: o and dv.

#include "attention/kernels/channel_tiles.cuh"

namespace weft::cuda {

// f(i, way) for every token of half a block: the decay on its way to the border in the middle of its stretch
// of 2 half tokens, from two channels' decays by token.
template <int half, class F>
__device__ void ways_to_middle(const float2 (&decay)[block / 2], F f) {
#pragma unroll
  for (int middle = half; middle < block / 2; middle += 2 * half) {
    float2 way{1, 1};
#pragma unroll
    for (int i = middle; i < middle + half; ++i) f(i, way = multiply(way, decay[i]));
    way = {1, 1};
#pragma unroll
    for (int i = middle - 1; i >= middle - half; --i) f(i, way), way = multiply(way, decay[i]);
  }
}

// One warp, for block n and part_columns channels of a and b: its part of the scores; a and b carried to the
// block's borders, in place; the decay over the block. A lane has two channels of eight tokens: of the
// block's first half, or, in the upper 16 lanes, of its second.
template <bool Reverse, class M>
__device__ void prepare_a(const M& memory, const typename M::Stage& g, int n, int part) {
  const int l = threadIdx.x % 32, row0 = n * block, mine = l / 16 * 8,
            channel = part_columns * part + l % 16 * 2;
  const bool second = mine;
  // Addresses of eight rows that begin at a multiple of eight differ by constants.
  const uint32_t first_a = g.a.at(row0 + mine, channel / 8) + channel % 8 * 2,
                 first_b = first_a + (g.b.address - g.a.address),
                 first_gate = g.gates.at(row0 + mine, channel);
  auto place = [](uint32_t first, int i) { return (first ^ (i << 4)) + i * 128; };
  float2 decay[8], total{1, 1};
  uint32_t a[8], b[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    decay[i] = decay_of(load_shared_pair((first_gate ^ (i << 4)) + i * 128));
    total = multiply(total, decay[i]);
    a[i] = load_shared_word(place(first_a, i)), b[i] = load_shared_word(place(first_b, i));
  }
  const float2 other{__shfl_xor_sync(~0u, total.x, 16), __shfl_xor_sync(~0u, total.y, 16)};

  Scores raw, scores;
  raw.clear();
  raw.add_products<part_columns / 16>(g.a, g.b, row0, part_columns / 8 * part);
#pragma unroll
  for (int c = 0; c < 2; ++c)
#pragma unroll
    for (int i = 0; i < 4; ++i) scores.x[c][i] = Scores::same(c, i) ? raw.x[c][i] : 0;
  __syncwarp();  // gates, a and b have been read: their places are free

  // One side's tokens have the rows of a, the other's those of b.
  auto sides = [&](int half) {
    return Sides{g.gates.of_block(part, n) + (half == 8 || half == 2 ? 0 : Sides::bytes)};
  };
  const uint32_t even = sides(8).at(mine, l % 16 / 4) + l % 4 * 4,
                 odd = sides(8).at(mine + 1, l % 16 / 4) + l % 4 * 4;
  auto write = [&](int half, int i, uint32_t row) {
    store_shared(
        ((i % 2 ? odd : even) ^ ((i / 2) << 4)) + i / 2 * 128 + (sides(half).address - sides(8).address),
        row);
  };
  auto add = [&](int half) {
    __syncwarp();
    Scores products;
    products.clear();
    products.add_products<part_columns / 16>(sides(half), sides(half), 0, 0);
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (Scores::meet<Reverse>(c, i, half)) scores.x[c][i] = products.x[c][i];
  };
  // Level 8, and the ways to the block's own borders.
  float2 up{1, 1}, down{1, 1};
  const float2 before = second ? other : float2{1, 1}, behind = second ? float2{1, 1} : other;
  const uint32_t first_up = Reverse ? first_b : first_a, first_down = Reverse ? first_a : first_b;
  uint32_t upwards[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    up = multiply(up, decay[i]);
    upwards[i] = weighted(Reverse ? b[i] : a[i], up);
    store_shared(place(first_up, i), weighted(Reverse ? b[i] : a[i], multiply(before, up)));
  }
#pragma unroll
  for (int i = 7; i >= 0; --i) {
    const uint32_t row = Reverse ? a[i] : b[i];
    write(8, i, second ? upwards[i] : weighted(row, down));
    store_shared(place(first_down, i), weighted(row, multiply(behind, down)));
    down = multiply(down, decay[i]);
  }
  add(8);
  auto add_level = [&]<int half>() {
    ways_to_middle<half>(decay, [&](int i, float2 way) {
      write(half, i, weighted(bool(i & half) != Reverse ? a[i] : b[i], way));
    });
    add(half);
  };
  add_level.template operator()<4>();
  add_level.template operator()<2>();
  add_level.template operator()<1>();
  for (int c = 0; c < 2; ++c) store_shared_floats(memory.scores().at(n, 2 * part + c), scores.x[c]);
  if (!second) store_shared_pair(memory.total(n, channel), multiply(total, other));
}

// One warp: the sum of block n's parts as an operand and its rest, in the first two's places.
template <class M>
__device__ void sum_scores(const M& memory, int n) {
  Scores sum;
  sum.clear();
#pragma unroll
  for (int slot = 0; slot < 2 * M::parts; ++slot) {
    const float4 v = load_shared_floats(memory.scores().at(n, slot));
    float(&x)[4] = sum.x[slot % 2];
    x[0] += v.x, x[1] += v.y, x[2] += v.z, x[3] += v.w;
  }
  uint32_t high[4], rest[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Split p = sum.quarter(i / 2, i % 2 * 2, [](int, int) { return true; });
    high[i] = p.high, rest[i] = p.rest;
  }
  store_shared_words(memory.scores().at(n, 0), high);
  store_shared_words(memory.scores().at(n, 1), rest);
}

// One warp: block n of its 16 columns of c, from column0 on.
template <bool Reverse, int D_a, class M>
__device__ void step_a(Accumulator<D_a>& state, const Place& at, const M& memory, const typename M::Stage& g,
                       int n, int column0) {
  const Lane lane;
  const int l = threadIdx.x % 32;
  uint32_t c[4];
  load_columns(c, g.c, n * block_bytes, column0);
  Scores out;
  out.clear();
#pragma unroll
  for (int k = 0; k < D_a / 16; ++k) {
    uint32_t a[4], b[4];
    load_matrices(a, g.a.at(l % 16, 2 * k + l / 16) + n * block_bytes);
    load_matrices_transposed(b, g.b.at(l % 16, 2 * k + l / 16) + n * block_bytes);
    const auto &s0 = state.x[2 * k], &s1 = state.x[2 * k + 1];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      WarpProducts::mma(out.x[i], a, pack(s0[2 * i], s0[2 * i + 1]), pack(s1[2 * i], s1[2 * i + 1]));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      auto& s = state.x[2 * k + half];
      const float2 total = load_shared_pair(memory.total(n, 16 * k + 8 * half + 2 * lane.t));
      s[0] *= total.x, s[1] *= total.y, s[2] *= total.x, s[3] *= total.y;
      WarpProducts::mma(s, c, b[2 * half], b[2 * half + 1]);
    }
  }
#pragma unroll
  for (int rest = 0; rest < 2; ++rest) {
    const uint4 p = load_shared(memory.scores().at(n, rest));
#pragma unroll
    for (int i = 0; i < 2; ++i) WarpProducts::mma(out.x[i], {p.x, p.y, p.z, p.w}, c[i], c[2 + i]);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    for (float& x : out.x[i]) x *= at.s.scale;
    store_half(g.c, out.x[i], n * block_bytes, column0 + 8 * i);
  }
}

}  // namespace weft::cuda
