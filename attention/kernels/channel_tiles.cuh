#pragma once
// What both sweeps with a gate for each channel stand on (channel_sweep_mma.cu): a chunk of 64 tokens in
// shared memory, taken in four blocks of 16, and S^T in registers, 16 columns of c to a warp.
//
// Two tokens i > j of a block meet at a level h = 8, 4, 2 or 1: they lie in the two halves of one stretch of
// 2h tokens, and decay from one to the other passes the border between these halves. Both ways to the border
// are products of decays, <= 1, so nothing overflows, and a gate of -inf is a reset.

#include "attention/kernels/channel_sweep.h"
#include "attention/kernels/chunk.cuh"

namespace weft::cuda {

constexpr int block = 16, blocks = chunk / block;

// f32 (chunk, D) in shared memory, in parts of 64 columns. Units of 32 bytes are permuted by the row, so that
// lanes in several rows find different banks.
template <int D>
struct Gates {
  static constexpr int bytes = chunk * D * 4, block_bytes = block * 256;
  uint32_t address;
  __device__ uint32_t at(int token, int channel) const {
    return block_of(channel >> 6, 0) + token * 256 + ((((channel >> 3) ^ token) & 7) << 5) +
           (channel & 7) * 4;
  }
  // Where the 16 rows of a block of one part lie, one after another.
  __device__ uint32_t block_of(int part, int n) const {
    return address + part * (chunk * 256) + n * block_bytes;
  }
};

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
__device__ inline float4 load_shared_floats(uint32_t address) {
  const uint4 v = load_shared(address);
  return {__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)};
}
__device__ inline void store_shared_floats(uint32_t address, const float (&v)[4]) {
  asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(address), "f"(v[0]), "f"(v[1]), "f"(v[2]),
               "f"(v[3])
               : "memory");
}

// Columns [column, column + D) of chunk rows from `first` on; those at and after `valid` become zero.
template <int D>
__device__ void copy_in(Gates<D> gates, const float* rows, int64_t pitch, int64_t first, int valid,
                        int64_t column) {
  for (int i = threadIdx.x; i < chunk * D / 4; i += blockDim.x) {
    const int row = i / (D / 4), unit = i % (D / 4);
    const int64_t at = (first + (row < valid ? row : 0)) * pitch + column + unit * 4;
    copy_async(gates.at(row, unit * 4), rows + at, row < valid);
  }
}

// The place of the two tokens of an accumulator's element among their levels: rows are a's tokens, columns
// b's.
template <bool Reverse>
__device__ inline bool meets(int row, int column, int half) {
  const int apart = row ^ column;
  return apart >= half && apart < 2 * half && (Reverse ? column > row : row > column);
}
// The last token of the first half of i's stretch.
__device__ constexpr int border(int i, int half) { return (i & ~(2 * half - 1)) + half - 1; }

// f32 (16, 16) of one warp, as the products of a block's tokens with each other.
struct Scores {
  float x[2][4];
  __device__ static int row(int i) { return threadIdx.x % 32 / 4 + (i / 2) * 8; }
  __device__ static int column(int n, int i) { return 8 * n + threadIdx.x % 4 * 2 + i % 2; }

  __device__ void clear() {
    for (auto& part : x)
      for (float& v : part) v = 0;
  }
  // x {+}= a b^T over the columns [64 part, 64 part + 64) of rows row0 .. row0 + 15.
  template <int R, int D>
  __device__ void add_products(Tile<R, D> a, Tile<R, D> b, int row0, int part) {
    const int l = threadIdx.x % 32;
#pragma unroll
    for (int k = 4 * part; k < 4 * part + 4; ++k) {
      uint32_t left[4], right[4];
      load_matrices(left, a.at(row0 + l % 16, 2 * k + l / 16));
      load_matrices(right, b.at(row0 + l % 16, 2 * k + l / 16));
      WarpProducts::mma(x[0], left, right[0], right[2]);
      WarpProducts::mma(x[1], left, right[1], right[3]);
    }
  }
  // The elements where `keep(row, column)`, as an operand.
  template <class Keep>
  __device__ void masked(uint32_t (&operand)[4], Keep keep) const {
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int i = 0; i < 4; i += 2)
        operand[2 * n + i / 2] = pack(keep(row(i), column(n, i)) ? x[n][i] : 0.f,
                                      keep(row(i), column(n, i + 1)) ? x[n][i + 1] : 0.f);
  }
};

// The scores of a chunk's blocks in shared memory, in `parts` that add up, as lanes hold them.
template <int parts>
struct ScoreParts {
  static constexpr int bytes = blocks * parts * 2 * 32 * 16;
  uint32_t address;
  __device__ uint32_t at(int n, int part, int half) const {
    return address + (((n * parts + part) * 2 + half) * 32 + threadIdx.x % 32) * 16;
  }
  __device__ void store(int n, int part, const Scores& s) const {
    store_shared_floats(at(n, part, 0), s.x[0]);
    store_shared_floats(at(n, part, 1), s.x[1]);
  }
  __device__ Scores load(int n) const {
    Scores s;
    s.clear();
#pragma unroll
    for (int part = 0; part < parts; ++part)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float4 v = load_shared_floats(at(n, part, half));
        s.x[half][0] += v.x, s.x[half][1] += v.y, s.x[half][2] += v.z, s.x[half][3] += v.w;
      }
    return s;
  }
};

// S^T (16, D_a) of one warp: 16 columns of c from column0 on.
template <int D_a>
struct WarpState {
  float x[D_a / 8][4];

  template <class F>
  __device__ void each(const Place& at, F f) {
    const Lane lane;
    const int64_t base = (int64_t(at.document) * at.s.heads + at.head) * at.s.d_a * at.s.d_c;
    const int a_step = at.sweep.transposed ? 1 : at.s.d_c, c_step = at.sweep.transposed ? at.s.d_a : 1;
#pragma unroll
    for (int n = 0; n < D_a / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        f(x[n][i], i / 2,
          base + (8 * n + 2 * lane.t + i % 2) * a_step + (at.column0 + lane.g + i / 2 * 8) * c_step);
  }
  __device__ void load(const Place& at) {
    const float* from = at.sweep.state_in;
    each(at, [&](float& v, int, int64_t i) { v = from ? at.sweep.state_in_scale * from[i] : 0; });
  }
  __device__ void finish(const Place& at) {
    if (at.sweep.state_out)
      each(at, [&](float& v, int, int64_t i) { at.sweep.state_out[i] = at.sweep.state_out_scale * v; });
  }
  // For each column of c: the sum of state * end_dot.
  __device__ void store_end_sums(const Place& at) {
    float sums[2] = {0, 0};
    each(at, [&](float& v, int half, int64_t i) { sums[half] += v * at.sweep.end_dot[i]; });
    for (int half = 0; half < 2; ++half) {
      sums[half] += __shfl_xor_sync(~0u, sums[half], 1);
      sums[half] += __shfl_xor_sync(~0u, sums[half], 2);
      const Lane lane;
      const int64_t row = int64_t(at.document) * at.s.heads + at.head;
      if (lane.t == 0) at.sweep.end_sums[row * at.s.d_c + at.column0 + lane.g + 8 * half] = sums[half];
    }
  }
};

// The 16 columns of c from 16 warp on, of a block's tokens: c^T as a left operand. {x[0], x[2]} and {x[1],
// x[3]} are the right operands of its two halves of columns.
template <int D_c>
__device__ void load_columns(uint32_t (&x)[4], Tile<chunk, D_c> c, int row0, int warp) {
  const int l = threadIdx.x % 32;
  load_matrices_transposed(x, c.at(row0 + l / 16 * 8 + l % 8, 2 * warp + l / 8 % 2));
}

// A block's output to the place of its columns of c, which only this warp reads.
template <int D_c>
__device__ void store_block(Tile<chunk, D_c> c, const Scores& out, int row0, int warp) {
  const Lane lane;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t to = c.at(row0 + lane.g, 2 * warp + i) + 4 * lane.t;
    store_shared(to, pack(out.x[i][0], out.x[i][1]));
    store_shared(to + 1024, pack(out.x[i][2], out.x[i][3]));
  }
}

// Shared memory of a block of threads: two stages of a chunk's rows, the scores, and, if the gate is of a's
// channels, the decay over each block of tokens.
template <GateOf gate, int D_a, int D_c>
struct ChannelMemory {
  static constexpr int D_gate = gate == GateOf::a ? D_a : D_c, parts = D_a / 64;
  struct Stage {
    Tile<chunk, D_a> a, b;
    Tile<chunk, D_c> c;
    Gates<D_gate> gates;
  };
  static constexpr int stage_bytes =
      2 * Tile<chunk, D_a>::bytes + Tile<chunk, D_c>::bytes + Gates<D_gate>::bytes;
  static constexpr int totals_bytes = gate == GateOf::a ? blocks * D_a * 4 : 0;
  static constexpr int bytes = 2 * stage_bytes + ScoreParts<parts>::bytes + totals_bytes;

  uint32_t address;
  __device__ Stage stage(int n) const {
    const uint32_t a = address + n % 2 * stage_bytes, b = a + Tile<chunk, D_a>::bytes,
                   c = b + Tile<chunk, D_a>::bytes;
    return {{a}, {b}, {c}, {c + Tile<chunk, D_c>::bytes}};
  }
  __device__ ScoreParts<parts> scores() const { return {address + 2 * stage_bytes}; }
  // of_a: the decay over a block, f32 (blocks, D_a)
  __device__ uint32_t total(int n, int channel) const {
    return scores().address + ScoreParts<parts>::bytes + (n * D_a + channel) * 4;
  }
};

__device__ inline uint32_t weighted(uint32_t pair, float2 weight) {
  const float2 v = unpack(pair);
  return pack(v.x * weight.x, v.y * weight.y);
}
__device__ inline float2 multiply(float2 x, float2 y) { return {x.x * y.x, x.y * y.y}; }
// e^gate, 0 for a gate of -inf.
__device__ inline float decay_of(float gate) { return exp2_fast(1.44269504f * gate); }

}  // namespace weft::cuda
