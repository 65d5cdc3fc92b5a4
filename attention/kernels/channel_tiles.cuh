#pragma once
// What both sweeps with a gate for each channel stand on (channel_sweep_tiles.cu): a chunk of 64 tokens in
// shared memory, S^T over a warpgroup's registers, 64 columns of c, 16 to a warp. A chunk is taken whole
// (channel_anchored.cuh) or in four blocks of 16 tokens.
//
// Two tokens i > j of a block meet at a level h = 8, 4, 2 or 1: they lie in the two halves of one stretch of
// 2h tokens, and decay from one to the other passes the border between these halves. Both ways to the border
// are products of decays, <= 1, so nothing overflows, and a gate of -inf is a reset.

#include <algorithm>

#include "attention/kernels/channel_sweep.h"
#include "attention/kernels/chunk.cuh"

namespace weft::cuda {

constexpr int block = 16, blocks = chunk / block;
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
__device__ inline void store_global(void* to, uint4 v) {
  asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
// f32 (chunk, D) in shared memory, in parts of 32 columns, whose units of 16 bytes are permuted by the row:
// the swizzle of Tile. Lanes in several rows find different banks.
template <int D>
struct Gates {
  static constexpr int bytes = chunk * D * 4, parts = D / part_columns, part_width = part_columns;
  uint32_t address;
  __device__ uint32_t part_address(int i) const { return of_block(i, 0); }
  __device__ uint32_t at(int token, int channel) const {
    return of_block(channel / part_columns, 0) + token * 128 + ((((channel >> 2) ^ token) & 7) << 4) +
           (channel & 3) * 4;
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

// The 16 columns of c from column0 on, of the tokens of a block, `to_block` bytes behind the first: c^T as a
// left operand. {x[i], x[2 + i]} is its i-th half of columns as a right operand.
template <int D_c>
__device__ void load_columns(uint32_t (&x)[4], Tile<chunk, D_c> c, int to_block, int column0) {
  const int l = threadIdx.x % 32;
  load_matrices_transposed(x, c.at(l / 16 * 8 + l % 8, column0 / 8 + l / 8 % 2) + to_block);
}

// The same for 8 columns.
template <int D_c>
__device__ void load_half(uint32_t (&x)[2], Tile<chunk, D_c> c, int to_block, int column0) {
  load_matrices_transposed(x, c.at(threadIdx.x % 16, column0 / 8) + to_block);
}

// f32 (16, 8) to the place of a block's 8 columns of c from column0 on, as bf16.
template <int D_c>
__device__ void store_half(Tile<chunk, D_c> c, const float (&x)[4], int to_block, int column0) {
  const Lane lane;
  const uint32_t to = c.at(lane.g, column0 / 8) + 4 * lane.t + to_block;
  store_shared(to, pack(x[0], x[1]));
  store_shared(to + 1024, pack(x[2], x[3]));
}

// The operand tile^T, over a warpgroup: 16 of its columns, and all.
__device__ inline void load_turned(uint32_t (&x)[4], Tile<chunk, 64> tile, int k) {
  const int l = threadIdx.x % 32, row = (l / 16) * 8 + l % 8, unit = Lane().warp * 2 + (l / 8) % 2;
  load_matrices_transposed(x, tile.at(row, unit) + k * block_bytes);
}
__device__ inline Operand<chunk> load_turned(Tile<chunk, 64> tile) {
  Operand<chunk> a;
#pragma unroll
  for (int k = 0; k < chunk / 16; ++k) load_turned(a.x[k], tile, k);
  return a;
}

// Of every four lanes that share columns, and for each n: sum[n] of their x[n], the same bits in all four,
// and f(n, the sum of the lanes before, of those behind).
template <class F>
__device__ void quad_sums(const float (&x)[chunk / 8], float (&sum)[chunk / 8], F f) {
  const int t = threadIdx.x % 4;
  float next[chunk / 8];
#pragma unroll
  for (int n = 0; n < chunk / 8; ++n) next[n] = __shfl_xor_sync(~0u, x[n], 1);
#pragma unroll
  for (int n = 0; n < chunk / 8; ++n) sum[n] = __shfl_xor_sync(~0u, x[n] + next[n], 2);
#pragma unroll
  for (int n = 0; n < chunk / 8; ++n) {
    f(n, (t & 1 ? next[n] : 0) + (t & 2 ? sum[n] : 0), (t & 1 ? 0 : next[n]) + (t & 2 ? 0 : sum[n]));
    sum[n] += x[n] + next[n];
  }
}

__device__ inline uint32_t weighted(uint32_t of, float2 weight) {
  const float2 v = unpack(of);
  return pack(v.x * weight.x, v.y * weight.y);
}
__device__ inline float2 multiply(float2 x, float2 y) { return {x.x * y.x, x.y * y.y}; }
// e^gate, 0 for a gate of -inf.
__device__ inline float decay_of(float gate) { return exp2_fast(1.44269504f * gate); }
__device__ inline float2 decay_of(float2 gate) { return {decay_of(gate.x), decay_of(gate.y)}; }

// Shared memory of a block of threads: two stages of a chunk's rows, P of a chunk or the scores of its
// blocks, decays, and what the gate's gradient needs at a chunk's end.
template <GateOf gate, int D_a, int D_c>
struct ChannelMemory {
  static constexpr int D_gate = gate == GateOf::a ? D_a : D_c, parts = D_a / part_columns;
  using Scores = Lanes<gate == GateOf::a ? 2 * parts : 5>;
  struct Stage {
    Tile<chunk, D_a> a, b;
    Tile<chunk, D_c> c;
    Gates<D_gate> gates;
  };
  static constexpr int c_bytes = Tile<chunk, D_c>::bytes;
  static constexpr int stage_bytes = 2 * Tile<chunk, D_a>::bytes + c_bytes + Gates<D_gate>::bytes;
  static constexpr int scores_bytes = std::max(Scores::bytes, 2 * Tile<chunk, chunk>::bytes);
  static constexpr int diagonal_parts = gate == GateOf::a ? 2 : 0;
  static constexpr int totals_bytes = gate == GateOf::a ? (blocks * D_a + diagonal_parts * chunk) * 4 : 0;
  // of_c, of one chunk: forward's output, what rounding took from it, and, late, `dot` in P's place.
  static constexpr bool late_dot = D_c == 64;  // two blocks of threads have room at once
  static constexpr int gradient_bytes = gate == GateOf::c ? (late_dot ? 2 : 3) * c_bytes : 0;
  static constexpr int barriers_at = 2 * stage_bytes + scores_bytes + totals_bytes + gradient_bytes;
  static constexpr int bytes = barriers_at + 3 * 8;

  uint32_t address;
  __device__ Stage stage(int n) const {
    const uint32_t a = address + n % 2 * stage_bytes, b = a + Tile<chunk, D_a>::bytes,
                   c = b + Tile<chunk, D_a>::bytes, gates = c + c_bytes;
    return {{a}, {b}, {c}, {gates}};
  }
  __device__ Scores scores() const { return {address + 2 * stage_bytes}; }
  // P as a pair of bf16, in the same place.
  __device__ Tile<chunk, chunk> p(int rest) const {
    return {scores().address + rest * Tile<chunk, chunk>::bytes};
  }
  // Of TMA: the two stages', and that of what the gate's gradient needs.
  __device__ uint32_t barrier(int i) const { return address + barriers_at + 8 * i; }
  __device__ Tile<chunk, D_c> forward_out() const { return {scores().address + scores_bytes + totals_bytes}; }
  __device__ Tile<chunk, D_c> lost() const { return {forward_out().address + c_bytes}; }
  __device__ Tile<chunk, D_c> dot() const {
    return {late_dot ? scores().address : forward_out().address + 2 * c_bytes};
  }
  // of_a: f32 (blocks, D_a)
  __device__ uint32_t total(int n, int channel) const {
    return scores().address + scores_bytes + (n * D_a + channel) * 4;
  }
  // of_a, with one anchor: f32 (diagonal_parts, chunk)
  __device__ uint32_t diagonal(int part, int token) const {
    return total(blocks, 0) + (part * chunk + token) * 4;
  }
};

}  // namespace weft::cuda
