#pragma once
// Attention by plain loops over tiles of 64 x 64, for every option and float type, in the accumulator's type.
// A block has 16 x 16 threads; of a square of scores thread (y, x) holds rows 4 y .. 4 y + 3 and columns 4 x
// .. 4 x + 3.

#include <numbers>

#include "attention/flash_attention.cuh"

namespace weft::cuda {

constexpr int kPlainTile = 64, kPlainThreads = 256, kPlainPitch = kPlainTile + 4, kPlainDepth = 32;
// Of the laplace weights: the mean, and 1 / (sigma sqrt 2).
constexpr double kLaplaceMean = 1 / std::numbers::sqrt2, kLaplaceRate = 2.5066282746310002;

// Arguments of all kernels.
template <class T>
struct PlainAttention {
  using W = Acc<T>;
  const T *q, *k, *v;
  DistanceBias<W> bias;
  TokenTiles queries, keys;
  Visibility visibility;
  Weighting weighting;
  W scale;
  int heads, group, d, e;  // group: query heads to a key head
  int64_t q_pitch, k_pitch, v_pitch;

  // From a product to a score; -infinity where nothing is seen.
  __device__ W score(W product, int head, W slope, TokenAt q, TokenAt k, bool everybody) const {
    if (!everybody && !visibility.sees(q, k)) return -W(INFINITY);
    return scale * product + bias(head, slope, q.position - k.position);
  }
  // Weights that depend on their own score alone, and their derivatives.
  __device__ W weight(W s) const {
    if (weighting == Weighting::relu2) return s > 0 ? s * s : W(0);
    return W(0.5) * std::erfc((W(kLaplaceMean) - s) * W(kLaplaceRate));
  }
  __device__ W weight_slope(W s) const {
    if (weighting == Weighting::relu2) return s > 0 ? 2 * s : W(0);
    const W u = (s - W(kLaplaceMean)) * W(kLaplaceRate);
    return W(std::numbers::sqrt2) * std::exp(-u * u);
  }
};

template <class W>
struct alignas(16) Four {
  W v[4];
};

// Shared memory of a block.
template <class W>
struct PlainShared {
  W x[kPlainDepth][kPlainPitch], y[kPlainDepth][kPlainPitch];  // what is multiplied; both: 32 rows of 128
  W p[kPlainTile][kPlainPitch];
  TokenAt q_at[kPlainTile], k_at[kPlainTile];
  int32_t q_token[kPlainTile], k_token[kPlainTile];
  W shift[kPlainTile], delta[kPlainTile];
};

template <class W>
__device__ PlainShared<W>& plain_shared() {
  extern __shared__ __align__(16) char raw[];
  return *reinterpret_cast<PlainShared<W>*>(raw);
}

// Who is in a tile; whoever reads it passes a barrier before.
__device__ inline void fetch_tile(TokenAt* at, int32_t* token, const TokenTiles& from, int64_t tile) {
  if (threadIdx.x < kPlainTile) {
    at[threadIdx.x] = from.at[tile * kPlainTile + threadIdx.x];
    token[threadIdx.x] = from.token[tile * kPlainTile + threadIdx.x];
  }
}

// Rows of one head; those of token -1 are zero.
template <class T>
struct TokenRows {
  const T* data;
  int64_t pitch;
  int width;
  const int32_t* token;

  __device__ Acc<T> operator()(int row, int column) const {
    const int32_t t = token[row];
    return t >= 0 && column < width ? static_cast<Acc<T>>(data[t * pitch + column]) : Acc<T>(0);
  }
};

// s = x y^T
template <class T, class W>
__device__ void row_products(W (&s)[4][4], const TokenRows<T>& x, const TokenRows<T>& y, PlainShared<W>& m) {
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
  for (int a = 0; a < 4; ++a)
#pragma unroll
    for (int b = 0; b < 4; ++b) s[a][b] = 0;
  for (int c0 = 0; c0 < x.width; c0 += kPlainDepth) {
    __syncthreads();
    for (int i = threadIdx.x; i < kPlainTile * kPlainDepth; i += kPlainThreads) {
      const int row = i / kPlainDepth, column = i % kPlainDepth;
      m.x[column][row] = x(row, c0 + column);
      m.y[column][row] = y(row, c0 + column);
    }
    __syncthreads();
    const int depth = min(kPlainDepth, x.width - c0);
    for (int c = 0; c < depth; ++c) {
      const auto u = *reinterpret_cast<const Four<W>*>(&m.x[c][4 * ty]);
      const auto w = *reinterpret_cast<const Four<W>*>(&m.y[c][4 * tx]);
#pragma unroll
      for (int a = 0; a < 4; ++a)
#pragma unroll
        for (int b = 0; b < 4; ++b) s[a][b] += u.v[a] * w.v[b];
    }
  }
}

// Of a (64, C) part of an output thread (y, x) holds rows 4 y + a and columns 64 b + 4 x + c.
template <class W, int C>
struct PlainOutput {
  W x[4][C / 64][4];

  __device__ void clear() {
#pragma unroll
    for (int a = 0; a < 4; ++a)
#pragma unroll
      for (int b = 0; b < C / 64; ++b)
#pragma unroll
        for (int c = 0; c < 4; ++c) x[a][b][c] = 0;
  }
  __device__ void scale(int a, W factor) {
#pragma unroll
    for (int b = 0; b < C / 64; ++b)
#pragma unroll
      for (int c = 0; c < 4; ++c) x[a][b][c] *= factor;
  }
  // += m.p^T y, of columns from column0 on
  template <class T>
  __device__ void add(const TokenRows<T>& y, int column0, PlainShared<W>& m) {
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    W* stage = &m.x[0][0];  // 32 rows of C
    static_assert(kPlainDepth * C <= 2 * kPlainDepth * kPlainPitch);
    for (int r0 = 0; r0 < kPlainTile; r0 += kPlainDepth) {
      __syncthreads();
      for (int i = threadIdx.x; i < kPlainDepth * C; i += kPlainThreads)
        stage[i] = y(r0 + i / C, column0 + i % C);
      __syncthreads();
      for (int r = 0; r < kPlainDepth; ++r) {
        const auto u = *reinterpret_cast<const Four<W>*>(&m.p[r0 + r][4 * ty]);
#pragma unroll
        for (int b = 0; b < C / 64; ++b) {
          const auto w = *reinterpret_cast<const Four<W>*>(&stage[r * C + 64 * b + 4 * tx]);
#pragma unroll
          for (int a = 0; a < 4; ++a)
#pragma unroll
            for (int c = 0; c < 4; ++c) x[a][b][c] += u.v[a] * w.v[c];
        }
      }
    }
  }
  template <class T>
  __device__ void store_row(int a, T* to, int column0, int width, W factor) const {
#pragma unroll
    for (int b = 0; b < C / 64; ++b)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int column = column0 + 64 * b + 4 * static_cast<int>(threadIdx.x % 16) + c;
        if (column < width) to[column] = static_cast<T>(x[a][b][c] * factor);
      }
  }
};

// Over the 16 threads that share rows.
template <class W>
__device__ W row_sum_of(W value) {
#pragma unroll
  for (int step = 8; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}
template <class W>
__device__ W row_max_of(W value) {
#pragma unroll
  for (int step = 8; step > 0; step /= 2) {
    const W other = __shfl_xor_sync(~0u, value, step);
    value = other > value ? other : value;
  }
  return value;
}

// Launches with its shared memory; nothing where the grid is empty.
template <class W, class Kernel, class... A>
void launch_plain(const char* name, Kernel kernel, dim3 grid, const A&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  constexpr int bytes = sizeof(PlainShared<W>);
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<grid, kPlainThreads, bytes, stream()>>>(arguments...);
  check_launch(name);
}

template <class T>
PlainAttention<T> plain_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                                  const TokenTileBuffers& queries, const TokenTileBuffers& keys,
                                  const AttentionOptions& o) {
  return {data<const T>(q),
          data<const T>(k),
          data<const T>(v),
          DistanceBias<Acc<T>>(bias, q.dim(1), o),
          queries.view(),
          keys.view(),
          Visibility(o),
          o.weighting,
          static_cast<Acc<T>>(o.scale),
          static_cast<int>(q.dim(1)),
          static_cast<int>(q.dim(1) / k.dim(1)),
          static_cast<int>(q.dim(2)),
          static_cast<int>(v.dim(2)),
          q.pitch(),
          k.pitch(),
          v.pitch()};
}

}  // namespace weft::cuda
