#pragma once
// Typed tiles over the tensor cores: bf16 tiles in shared memory, f32 accumulators and bf16 operands in
// registers.
//
// A warpgroup is four warps; it owns 64 rows of an accumulator, warp w the rows 16 w .. 16 w + 15. Thread (g,
// t) of a warp (g = lane / 4, t = lane % 4) holds, of each 8 columns, columns 2t and 2t+1 of rows g and g
// + 8. This is the layout of both mma.sync and wgmma, so a kernel written on these types runs on either.

#include <cuda_bf16.h>

#include <cstdint>

namespace weft::cuda {

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// bf16 (R, C) in shared memory: blocks of 64 columns, each R rows of 128 bytes whose eight 16-byte units are
// permuted by the row (the 128-byte swizzle of TMA and wgmma). `address` is a multiple of 1024.
template <int R, int C>
struct Tile {
  static constexpr int bytes = R * C * 2, parts = C / 64, part_width = 64;
  uint32_t address;
  __device__ uint32_t part_address(int i) const { return address + i * (R * 128); }

  // Of the blocks of N columns, the n-th.
  template <int N>
  __device__ Tile<R, N> part(int n) const {
    return {address + n * (N / 64) * (R * 128)};
  }

  // Of the 16-byte unit that holds columns 8 * unit .. 8 * unit + 7 of a row. Rows 8 apart lie 1024 bytes
  // apart.
  __device__ uint32_t at(int row, int unit) const {
    return ((address + row * 128) ^ ((row & 7) << 4) ^ ((unit & 7) << 4)) + (unit >> 3) * (R * 128);
  }
};

// f32 (64, N) across a warpgroup.
template <int N>
struct Accumulator {
  static constexpr int columns = N;
  float x[N / 8][4];

  __device__ void fill(float value) {
#pragma unroll
    for (int n = 0; n < N / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) x[n][i] = value;
  }
  // Rows g and g + 8 have factors of their own.
  __device__ void scale(float low, float high) {
#pragma unroll
    for (int n = 0; n < N / 8; ++n) x[n][0] *= low, x[n][1] *= low, x[n][2] *= high, x[n][3] *= high;
  }
};

// bf16 (64, K) across a warpgroup, the left side of a product.
template <int K>
struct Operand {
  uint32_t x[K / 16][4];
};

struct Lane {
  int warp, g, t;
  __device__ Lane() : warp((threadIdx.x / 32) % 4), g((threadIdx.x % 32) / 4), t(threadIdx.x % 4) {}
  __device__ int row() const { return warp * 16 + g; }  // and row() + 8
};

__device__ inline uint32_t pack(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ inline float2 unpack(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline void store_shared(uint32_t address, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ inline uint32_t load_shared_word(uint32_t address) {
  uint32_t v;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}
__device__ inline uint4 load_shared(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
__device__ inline void load_matrices(uint32_t (&x)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address)
               : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&x)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address)
               : "memory");
}

__device__ inline void load_matrices_transposed(uint32_t (&x)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(x[0]), "=r"(x[1])
               : "r"(address)
               : "memory");
}
// The way back, of four matrices: `address` of lane 8 i + r is where row r of matrix i goes, 16 bytes. Of
// each matrix thread (g, t) holds columns 2t and 2t + 1 of row g.
__device__ inline void store_matrices(uint32_t address, const uint32_t (&x)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t row = __shfl_sync(~0u, address, 8 * i + threadIdx.x % 32 / 4);
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(row + threadIdx.x % 4 * 4), "r"(x[i]) : "memory");
  }
#else
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x[0]),
               "r"(x[1]), "r"(x[2]), "r"(x[3])
               : "memory");
#endif
}
// The same, each transposed on its way: `address` is of columns.
__device__ inline void store_matrices_transposed(uint32_t address, const uint32_t (&x)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  uint32_t turned[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned[i]) : "r"(x[i]));
  store_matrices(address, turned);
#else
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
               : "memory");
#endif
}

// Sixteen bytes to shared memory, or zeros, without waiting for them.
__device__ inline void copy_async(uint32_t to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0)
               : "memory");
}
// All that a thread has copied since its last group are a group.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `Left` of this thread's groups are under way.
template <int Left>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

// A pair cut to bf16, and what the cut lost.
struct Split {
  uint32_t high, rest;
  __device__ Split(float x, float y) {
    const uint32_t a = __float_as_uint(x), b = __float_as_uint(y);
    high = __byte_perm(a, b, 0x7632);
    rest = pack(x - __uint_as_float(a & 0xffff0000u), y - __uint_as_float(b & 0xffff0000u));
  }
};

// tile[row0 .. row0 + 63] = a, rounded. Conflict-free: eight rows of one unit fall on different banks.
template <int R, int N>
__device__ void store(Tile<R, N> tile, int row0, const Accumulator<N>& a) {
  const Lane lane;
#pragma unroll
  for (int n = 0; n < N / 8; ++n) {
    const uint32_t to = tile.at(row0 + lane.row(), n) + 4 * lane.t;
    store_shared(to, pack(a.x[n][0], a.x[n][1]));
    store_shared(to + 1024, pack(a.x[n][2], a.x[n][3]));
  }
}
// tile + rest = a
template <int R, int N>
__device__ void store_split(Tile<R, N> tile, Tile<R, N> rest, int row0, const Accumulator<N>& a) {
  const Lane lane;
#pragma unroll
  for (int n = 0; n < N / 8; ++n) {
    const uint32_t to = tile.at(row0 + lane.row(), n) + 4 * lane.t;
    const uint32_t to_rest = to + (rest.address - tile.address);
    const Split low(a.x[n][0], a.x[n][1]), high(a.x[n][2], a.x[n][3]);
    store_shared(to, low.high);
    store_shared(to + 1024, high.high);
    store_shared(to_rest, low.rest);
    store_shared(to_rest + 1024, high.rest);
  }
}

// The tile as an operand.
template <int C>
__device__ Operand<C> load(Tile<64, C> tile) {
  const int l = threadIdx.x % 32;
  Operand<C> a;
#pragma unroll
  for (int k = 0; k < C / 16; ++k) load_matrices(a.x[k], tile.at(Lane().warp * 16 + l % 16, 2 * k + l / 16));
  return a;
}

// The operand tile^T with its column j (row j of the tile) multiplied by weight[j] in f32: rounded, or cut
// and its rest.
template <int R>
struct Weighted {
  Operand<R> high, rest;
};
// The same in f32, one after the other: products that run meanwhile may not see their operands made.
template <int R>
struct WeightedRows {
  float2 x[R / 16][4];
};
template <int R>
__device__ WeightedRows<R> weighted_rows(Tile<R, 64> tile, const float* weight) {
  const Lane lane;
  const int l = threadIdx.x % 32, row = (l / 16) * 8 + l % 8, unit = lane.warp * 2 + (l / 8) % 2;
  WeightedRows<R> a;
#pragma unroll
  for (int k = 0; k < R / 16; ++k) {
    uint32_t x[4];
    load_matrices_transposed(x, tile.at(16 * k + row, unit));
    const float2 w0 = *reinterpret_cast<const float2*>(weight + 16 * k + 2 * lane.t);
    const float2 w1 = *reinterpret_cast<const float2*>(weight + 16 * k + 8 + 2 * lane.t);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 v = unpack(x[i]), w = i < 2 ? w0 : w1;
      a.x[k][i] = {v.x * w.x, v.y * w.y};
    }
  }
  return a;
}
template <bool WithRest, int R>
__device__ Weighted<R> rounded(const WeightedRows<R>& rows) {
  Weighted<R> a;
#pragma unroll
  for (int k = 0; k < R / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = rows.x[k][i];
      if constexpr (WithRest) {
        const Split split(x.x, x.y);
        a.high.x[k][i] = split.high, a.rest.x[k][i] = split.rest;
      } else {
        a.high.x[k][i] = pack(x.x, x.y);
      }
    }
  return a;
}
template <bool WithRest, int R>
__device__ Weighted<R> load_transposed(Tile<R, 64> tile, const float* weight) {
  return rounded<WithRest>(weighted_rows(tile, weight));
}

// Row sums of tile * a over the columns 64 block .. 64 block + 63: of rows lane.row() and lane.row() + 8, in
// all four threads that share them.
template <int N>
__device__ float2 row_dots(Tile<64, N> tile, const Accumulator<N>& a, int block) {
  const Lane lane;
  float2 sum{0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int n = 8 * block + i;
    const uint32_t from = tile.at(lane.row(), n) + 4 * lane.t;
    const float2 low = unpack(load_shared_word(from)), high = unpack(load_shared_word(from + 1024));
    sum.x += low.x * a.x[n][0] + low.y * a.x[n][1];
    sum.y += high.x * a.x[n][2] + high.y * a.x[n][3];
  }
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
    sum.x += __shfl_xor_sync(~0u, sum.x, step);
    sum.y += __shfl_xor_sync(~0u, sum.y, step);
  }
  return sum;
}

// Rows 64 n .. 64 n + 63 of a tile, as the left side of a product.
template <int R, int C>
struct TileRows {
  uint32_t address = 0;
  TileRows() = default;
  __device__ TileRows(Tile<R, C> tile, int n) : address(tile.address + n * (64 * 128)) {}
};

// Products by mma.sync (sm_80 and later). They are done when they return, so start, commit and wait do
// nothing.
struct WarpProducts {
  template <int N>
  __device__ static void start(Accumulator<N>&) {}
  __device__ static void fence() {}
  __device__ static void commit() {}
  template <int Pending>
  __device__ static void wait() {}
  template <int N>
  __device__ static void settle(Accumulator<N>&) {}

  // d {+}= a b^T
  template <int N, int K>
  __device__ static void a_bt(Accumulator<N>& d, const Operand<K>& a, Tile<N, K> b, bool add) {
    const int l = threadIdx.x % 32;
    if (!add) d.fill(0);
#pragma unroll
    for (int k = 0; k < K / 16; ++k)
#pragma unroll
      for (int n = 0; n < N / 16; ++n) {
        uint32_t y[4];
        load_matrices(y, b.at(16 * n + (l / 16) * 8 + l % 8, 2 * k + (l / 8) % 2));
        mma(d.x[2 * n], a.x[k], y[0], y[1]);
        mma(d.x[2 * n + 1], a.x[k], y[2], y[3]);
      }
  }
  template <int N, int K, int R>
  __device__ static void a_bt(Accumulator<N>& d, TileRows<R, K> a, Tile<N, K> b, bool add) {
    const int l = threadIdx.x % 32;
    if (!add) d.fill(0);
#pragma unroll
    for (int k = 0; k < K / 16; ++k) {
      uint32_t x[4];
      load_matrices(x, Tile<R, K>{a.address}.at(Lane().warp * 16 + l % 16, 2 * k + l / 16));
#pragma unroll
      for (int n = 0; n < N / 16; ++n) {
        uint32_t y[4];
        load_matrices(y, b.at(16 * n + (l / 16) * 8 + l % 8, 2 * k + (l / 8) % 2));
        mma(d.x[2 * n], x, y[0], y[1]);
        mma(d.x[2 * n + 1], x, y[2], y[3]);
      }
    }
  }
  // d += a b
  template <int N, int K>
  __device__ static void add_a_b(Accumulator<N>& d, const Operand<K>& a, Tile<K, N> b) {
    const int l = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < K / 16; ++k)
#pragma unroll
      for (int n = 0; n < N / 16; ++n) {
        uint32_t y[4];
        load_matrices_transposed(y, b.at(16 * k + l % 16, 2 * n + l / 16));
        mma(d.x[2 * n], a.x[k], y[0], y[1]);
        mma(d.x[2 * n + 1], a.x[k], y[2], y[3]);
      }
  }
  // Of one warp: d (16, 8) += a (16, 16) b (16, 8). Thread (g, t) holds rows 2t, 2t + 1 of b's column g in
  // b0, 2t + 8 and 2t + 9 in b1: the layout that a has of rows of b^T.
  __device__ static void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

}  // namespace weft::cuda
