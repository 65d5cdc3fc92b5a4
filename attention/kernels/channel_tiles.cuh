#pragma once
// What both sweeps with a gate for each channel stand on (channel_sweep_mma.cu): a chunk of 64 tokens in
// shared memory, taken in four blocks of 16, and S^T in registers. 16 columns of c belong to two warps, each
// with half of a's channels of the state and half of the columns of the output.
//
// Two tokens i > j of a block meet at a level h = 8, 4, 2 or 1: they lie in the two halves of one stretch of
// 2h tokens, and decay from one to the other passes the border between these halves. Both ways to the border
// are products of decays, <= 1, so nothing overflows, and a gate of -inf is a reset.

#include <algorithm>

#include "attention/kernels/channel_sweep.h"
#include "attention/kernels/chunk.cuh"

namespace weft::cuda {

constexpr int block = 16, blocks = chunk / block;
constexpr int score_blocks = blocks * (blocks + 1) / 2;  // of 16 x 16, on and on one side of the diagonal
constexpr int part_columns = 32;  // of a and b, whose decayed products one warp computes
// From a block to the next in a Tile and in Gates, whose permutations repeat every eight rows: places of the
// first block are computed once.
constexpr int block_bytes = block * 128;

__device__ inline float2 load_shared_pair(uint32_t address) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
  return v;
}
__device__ inline void store_shared_pair(uint32_t address, float2 v) {
  asm volatile("st.shared.v2.f32 [%0], {%1,%2};" ::"r"(address), "f"(v.x), "f"(v.y) : "memory");
}
__device__ inline float load_shared_float(uint32_t address) {
  return __uint_as_float(load_shared_word(address));
}
__device__ inline void store_shared_words(uint32_t address, const uint32_t (&v)[4]) {
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(v[0]), "r"(v[1]), "r"(v[2]),
               "r"(v[3])
               : "memory");
}
__device__ inline void store_shared_floats(uint32_t address, const float (&v)[4]) {
  store_shared_words(
      address, {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])});
}
__device__ inline float4 load_shared_floats(uint32_t address) {
  const uint4 v = load_shared(address);
  return {__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)};
}
// The two warps of 16 columns wait for each other.
__device__ inline void sync_pair(int pair) { asm volatile("bar.sync %0, 64;" ::"r"(pair + 1) : "memory"); }

// f32 (chunk, D) in shared memory, in parts of 32 columns. Units of 32 bytes are permuted by the row, so that
// lanes in several rows find different banks.
template <int D>
struct Gates {
  static constexpr int bytes = chunk * D * 4;
  uint32_t address;
  __device__ uint32_t at(int token, int channel) const {
    return of_block(channel / part_columns, 0) + token * 128 +
           ((((channel >> 3) ^ token ^ (token >> 1)) & 3) << 5) + (channel & 7) * 4;
  }
  // Where the 16 rows of a block of one part lie, one after another.
  __device__ uint32_t of_block(int part, int n) const {
    return address + part * (chunk * 128) + n * (block * 128);
  }
};

// Columns [column, column + D) of chunk rows from `first` on, by `threads` threads; rows at and after `valid`
// become zero. A thread's rows are so far apart that their places and addresses differ by constants.
template <int threads, int D>
__device__ void copy_in(Tile<chunk, D> tile, const Rows& rows, int64_t first, int valid, int64_t column) {
  constexpr int units = D / 8, apart = threads / units;
  static_assert(apart % 8 == 0 && chunk % apart == 0);
  const int row = threadIdx.x / units, unit = threadIdx.x % units;
  const auto* from =
      static_cast<const __nv_bfloat16*>(rows.data) + (first + row) * rows.pitch + column + unit * 8;
  const uint32_t to = tile.at(row, unit);
#pragma unroll
  for (int i = 0; i < chunk / apart; ++i, from += apart * rows.pitch)
    copy_async(to + i * apart * 128, from, row + i * apart < valid);
}
template <int threads, int D>
__device__ void copy_in(Gates<D> gates, const float* rows, int64_t pitch, int64_t first, int valid,
                        int64_t column) {
  constexpr int units = D / 4, apart = threads / units;
  static_assert(chunk % apart == 0);
  const int row = threadIdx.x / units, unit = threadIdx.x % units;
  const float* from = rows + (first + row) * pitch + column + unit * 4;
  const uint32_t first_to = gates.at(row, unit * 4);
#pragma unroll
  for (int i = 0; i < chunk / apart; ++i, from += apart * pitch) {
    const uint32_t to = apart % 8 == 0 ? first_to + i * apart * 128 : gates.at(row + i * apart, unit * 4);
    copy_async(to, from, row + i * apart < valid);
  }
}

// bf16 (block, part_columns) in shared memory, permuted so that neither the lanes of two rows 8 apart nor
// ldmatrix meet in a bank.
struct Sides {
  static constexpr int bytes = block * part_columns * 2;
  uint32_t address;
  __device__ uint32_t at(int row, int unit) const {
    return address + ((row * 64) ^ ((row & 8) << 3)) + ((unit ^ ((row >> 1) & 3)) << 4);
  }
};

// The last token of the first half of i's stretch.
__device__ constexpr int border(int i, int half) { return (i & ~(2 * half - 1)) + half - 1; }

// d (16, 8) += a (16, 8) b (8, 8): half of WarpProducts::mma, the first halves of its operands.
__device__ inline void mma_half(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b));
}

// f32 (16, 16) of one warp.
struct Scores {
  float x[2][4];
  // Whether the token of a's row and that of b's column, of element x[n][i], are one, or meet at a level.
  __device__ static bool same(int n, int i) { return n == i / 2 && row() == column(i); }
  template <bool Reverse>
  __device__ static bool meet(int n, int i, int half) {
    if (half == 8) return n != i / 2 && n == (Reverse ? 1 : 0);
    const int apart = row() ^ column(i);
    return n == i / 2 && apart >= half && apart < 2 * half &&
           (Reverse ? column(i) > row() : row() > column(i));
  }

  // Whether that of the row sees that of the column, or they are one.
  template <bool Reverse>
  __device__ static bool sees(int n, int i) {
    const int from = row() + i / 2 * 8, to = column(i) + n * 8;
    return Reverse ? to >= from : from >= to;
  }

  __device__ void clear() {
    for (auto& half : x)
      for (float& v : half) v = 0;
  }
  // x += a b^T over 16 `steps` columns from unit0 * 8 on, of rows row0 .. row0 + 15.
  template <int steps, class A, class B>
  __device__ void add_products(A a, B b, int row0, int unit0) {
    const int l = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < steps; ++k) {
      uint32_t left[4], right[4];
      load_matrices(left, a.at(row0 + l % 16, unit0 + 2 * k + l / 16));
      load_matrices(right, b.at(row0 + l % 16, unit0 + 2 * k + l / 16));
      WarpProducts::mma(x[0], left, right[0], right[2]);
      WarpProducts::mma(x[1], left, right[1], right[3]);
    }
  }
  __device__ void add(const Scores& other) {
    for (int i = 0; i < 8; ++i) x[i / 4][i % 4] += other.x[i / 4][i % 4];
  }
  // A quarter of an operand, whose first element is x[n][i]: the elements where `keep(n, i)`.
  template <class Keep>
  __device__ Split quarter(int n, int i, Keep keep) const {
    return {keep(n, i) ? x[n][i] : 0.f, keep(n, i + 1) ? x[n][i + 1] : 0.f};
  }

 private:
  // Of eight tokens.
  __device__ static int row() { return threadIdx.x % 32 / 4; }
  __device__ static int column(int i) { return threadIdx.x % 4 * 2 + i % 2; }
};

// What lanes hold, 16 bytes each, in shared memory: `slots` for each block of tokens.
template <int slots>
struct Lanes {
  static constexpr int bytes = blocks * slots * 32 * 16;
  uint32_t address;
  __device__ uint32_t at(int n, int slot) const {
    return address + ((n * slots + slot) * 32 + threadIdx.x % 32) * 16;
  }
};

// What the two warps of a pair hand each other, in two turns: a slot of 16 bytes a lane for each warp.
struct Exchange {
  static constexpr int slot_bytes = 32 * 16, bytes = 4 * slot_bytes;  // of one pair
  uint32_t address;
  __device__ uint32_t at(int turn, int share) const {
    return address + ((turn & 1) * 2 + share) * slot_bytes + threadIdx.x % 32 * 16;
  }
};

// Of S^T, one warp's 16 columns of c from at.column0 on, its own eight first, and D_a / 2 channels of a from
// share * D_a / 2 on.
template <int D_a>
struct WarpState {
  static constexpr int tiles = D_a / 16;
  float x[tiles][4];

  template <class F>
  __device__ void each(const Place& at, int share, F f) {
    const Lane lane;
    const int64_t base = (int64_t(at.document) * at.s.heads + at.head) * at.s.d_a * at.s.d_c;
    const int a_step = at.sweep.transposed ? 1 : at.s.d_c, c_step = at.sweep.transposed ? at.s.d_a : 1;
#pragma unroll
    for (int n = 0; n < tiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int of_a = share * (D_a / 2) + 8 * n + 2 * lane.t + i % 2;
        f(x[n][i], i / 2, base + of_a * a_step + (at.column0 + lane.g + (i / 2 ^ share) * 8) * c_step);
      }
  }
  __device__ void load(const Place& at, int share) {
    const float* from = at.sweep.state_in;
    each(at, share, [&](float& v, int, int64_t i) { v = from ? at.sweep.state_in_scale * from[i] : 0; });
  }
  __device__ void finish(const Place& at, int share) {
    if (at.sweep.state_out)
      each(at, share,
           [&](float& v, int, int64_t i) { at.sweep.state_out[i] = at.sweep.state_out_scale * v; });
  }
  // For each column of c: the sum of state * end_dot.
  __device__ void store_end_sums(const Place& at, int share, int pair, const Exchange& exchange) {
    float sums[4] = {};
    each(at, share, [&](float& v, int half, int64_t i) { sums[half] += v * at.sweep.end_dot[i]; });
    for (int half = 0; half < 2; ++half) {
      sums[half] += __shfl_xor_sync(~0u, sums[half], 1);
      sums[half] += __shfl_xor_sync(~0u, sums[half], 2);
    }
    store_shared_floats(exchange.at(0, share), sums);
    sync_pair(pair);
    const float4 one = load_shared_floats(exchange.at(0, 0)), two = load_shared_floats(exchange.at(0, 1));
    const Lane lane;
    float* to =
        at.sweep.end_sums + (int64_t(at.document) * at.s.heads + at.head) * at.s.d_c + at.column0 + lane.g;
    if (lane.t == 0 && share == 0) to[0] = one.x + two.y, to[8] = one.y + two.x;
  }
};

// The 16 columns of c from 16 pair on, of the tokens of a block, `to_block` bytes behind the first: c^T as a
// left operand, the share's own eight columns first. {x[0], x[2]} are those as a right operand.
template <int D_c>
__device__ void load_columns(uint32_t (&x)[4], Tile<chunk, D_c> c, int to_block, int pair, int share) {
  const int l = threadIdx.x % 32;
  load_matrices_transposed(x, c.at(l / 16 * 8 + l % 8, 2 * pair + (l / 8 % 2 ^ share)) + to_block);
}

// 8 columns.
template <int D_c>
__device__ void load_half(uint32_t (&x)[2], Tile<chunk, D_c> c, int to_block, int column0) {
  load_matrices_transposed(x, c.at(threadIdx.x % 16, column0 / 8) + to_block);
}

// f32 (16, 8) to the place of a block's columns of c, as bf16.
template <int D_c>
__device__ void store_half(Tile<chunk, D_c> c, const float (&x)[4], int to_block, int pair, int share) {
  const Lane lane;
  const uint32_t to = c.at(lane.g, 2 * pair + share) + 4 * lane.t + to_block;
  store_shared(to, pack(x[0], x[1]));
  store_shared(to + 1024, pack(x[2], x[3]));
}

__device__ inline uint32_t weighted(uint32_t of, float2 weight) {
  const float2 v = unpack(of);
  return pack(v.x * weight.x, v.y * weight.y);
}
__device__ inline float2 multiply(float2 x, float2 y) { return {x.x * y.x, x.y * y.y}; }
// e^gate, 0 for a gate of -inf.
__device__ inline float decay_of(float gate) { return exp2_fast(1.44269504f * gate); }
__device__ inline float2 decay_of(float2 gate) { return {decay_of(gate.x), decay_of(gate.y)}; }

// Shared memory of a block of threads: two stages of a chunk's rows, the blocks' scores, what pairs exchange,
// and decays: if the gate is of a's channels over each block of tokens, and over half a chunk.
template <GateOf gate, int D_a, int D_c>
struct ChannelMemory {
  static constexpr int D_gate = gate == GateOf::a ? D_a : D_c, parts = D_a / part_columns, pairs = D_c / 16;
  using Scores = Lanes<gate == GateOf::a ? 2 * parts : 5>;
  struct Stage {
    Tile<chunk, D_a> a, b;
    Tile<chunk, D_c> c;
    Gates<D_gate> gates;
  };
  static constexpr int stage_bytes =
      2 * Tile<chunk, D_a>::bytes + Tile<chunk, D_c>::bytes + Gates<D_gate>::bytes;
  static constexpr int scores_bytes = std::max(Scores::bytes, 2 * score_blocks * Exchange::slot_bytes);
  static constexpr int exchanges = gate == GateOf::a ? 2 : 3;  // to a pair
  static constexpr int diagonal_parts = gate == GateOf::a ? 4 : 0;
  static constexpr int totals_bytes = (gate == GateOf::a ? blocks * D_a + diagonal_parts * chunk : D_c) * 4;
  static constexpr int bytes =
      2 * stage_bytes + scores_bytes + pairs * exchanges * Exchange::bytes + totals_bytes;

  uint32_t address;
  __device__ Stage stage(int n) const {
    const uint32_t a = address + n % 2 * stage_bytes, b = a + Tile<chunk, D_a>::bytes,
                   c = b + Tile<chunk, D_a>::bytes;
    return {{a}, {b}, {c}, {c + Tile<chunk, D_c>::bytes}};
  }
  __device__ Scores scores() const { return {address + 2 * stage_bytes}; }
  __device__ Exchange exchange(int pair, int which) const {
    return {scores().address + scores_bytes + (pair * exchanges + which) * Exchange::bytes};
  }
  // With one anchor for the chunk, in the same places: 16 bytes a lane of a block of P, or of its rest, and of
  // what a pair's warps hand each other.
  __device__ uint32_t score_block(int n, int rest) const {
    return scores().address + (2 * n + rest) * Exchange::slot_bytes + threadIdx.x % 32 * 16;
  }
  __device__ uint32_t handed(int pair, int slot) const {
    return exchange(pair, 0).address + slot * Exchange::slot_bytes + threadIdx.x % 32 * 16;
  }
  // of_c: a token's row of what was cut off a share's columns of c
  __device__ uint32_t rest(int pair, int share, int token) const {
    return exchange(pair, 2).address + (share * chunk + token) * 16;
  }
  // f32 (blocks, D_a), of_c (D_c)
  __device__ uint32_t total(int n, int channel) const {
    return exchange(pairs, 0).address + (n * D_a + channel) * 4;
  }
  // of_a, with one anchor: f32 (diagonal_parts, chunk)
  __device__ uint32_t diagonal(int part, int token) const {
    return total(blocks, 0) + (part * chunk + token) * 4;
  }
};

}  // namespace weft::cuda
