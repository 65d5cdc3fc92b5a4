#pragma once
// What the kernels of the moving average share: tokens of a warp's 32 channels on their way through shared
// memory, and who walks where. Warps are independent of each other.

#include <type_traits>

#include "attention/kernels/ema.h"
#include "attention/kernels/shared_memory.cuh"
#include "attention/kernels/tile.cuh"

namespace weft::cuda {

constexpr int kEmaWarps = 4, kEmaThreads = 32 * kEmaWarps;
constexpr int kEmaUnroll = 8;  // tokens that are computed without a branch
// Tiles of one warp: 4 KB each, one in work and two under way.
constexpr int kEmaStages = 3, kEmaTileBytes = 4096;
template <class T>
constexpr int kEmaRow = 32 * sizeof(T);  // bytes of a token in a tile
template <class T>
constexpr int kEmaTile = kEmaTileBytes / kEmaRow<T>;  // tokens

// The shared memory of this warp, by its address: pointers would be derived anew at every use.
__device__ inline uint32_t ema_shared(void* shared, int bytes_a_warp) {
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  return __shfl_sync(~0u, base + threadIdx.x / 32 * bytes_a_warp, 0);
}

// Elements in shared memory, as bits and as numbers.
template <class T>
__device__ uint32_t take(uint32_t at) {
  uint32_t bits;
  if constexpr (sizeof(T) == 2)
    asm volatile("ld.shared.u16 %0, [%1];" : "=r"(bits) : "r"(at));
  else
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(bits) : "r"(at));
  return bits;
}
template <class T>
__device__ float number(uint32_t bits) {
  return __uint_as_float(sizeof(T) == 2 ? bits << 16 : bits);
}
template <class T>
__device__ void put(uint32_t at, float x) {
  if constexpr (sizeof(T) == 2)
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "r"(uint32_t{bf16(x).bits}));
  else
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(x));
}
// One behind the other in time; the second `step` bytes on.
template <class T>
__device__ void put_pair(uint32_t at, int step, float x, float y) {
  if constexpr (sizeof(T) == 2) {
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(y), "f"(x));
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "r"(both));
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(at + step), "r"(both >> 16));
  } else {
    put<T>(at, x), put<T>(at + step, y);
  }
}

// A matrix (tokens, channels).
template <class T>
struct EmaRows {
  T* data;
  int64_t pitch;
  int channels;
  bool packed;  // may be moved in pieces of 16 bytes
};

// Tiles of such a matrix, 32 channels wide, that lie one behind the other, or before the other if Step is -1.
// Only tokens [begin, end) are touched.
template <class T, int Step>
class EmaMover {
 public:
  __device__ EmaMover(const EmaRows<T>& m, int channel, int low, int begin, int end)
      : low_(low), begin_(begin), end_(end), packed_(m.packed), pitch_(m.pitch) {
    const int lane = threadIdx.x % 32, column = lane % kPacks * kPack;
    own_ = channel + lane < m.channels ? m.data + channel + lane : nullptr;
    mine_ = channel + column < m.channels;
    // From a lane, so that it stays in registers.
    stride_ = __shfl_sync(~0u, kRows * m.pitch * static_cast<int64_t>(sizeof(T)), 0);
    at_ = reinterpret_cast<Byte*>(m.data + (low + lane / kPacks) * m.pitch + channel + column);
  }

  // Without waiting, where packed and whole. Every call is one group of asynchronous copies.
  __device__ void fetch(uint32_t tile) {
    const int lane = threadIdx.x % 32;
    if (packed_ && low_ >= begin_ && low_ + kTile <= end_) {
      const Byte* from = at_;
      if (mine_) {
#pragma unroll
        for (int i = 0; i < kMoves; ++i, from += stride_)
          asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(tile + i * 512 + lane * 16),
                       "l"(from));
      }
    } else if (own_ != nullptr) {
      for (int token = max(low_, begin_); token < min(low_ + kTile, end_); ++token)
        put<Element>(tile + (token - low_) * kEmaRow<T> + lane * static_cast<int>(sizeof(T)),
                     own_[token * pitch_]);
    }
    commit_copies();
    advance();
  }

  __device__ void send(uint32_t tile) {
    const int lane = threadIdx.x % 32;
    __syncwarp();
    if (packed_ && low_ >= begin_ && low_ + kTile <= end_) {
      uint4 held[kMoves];
#pragma unroll
      for (int i = 0; i < kMoves; ++i)
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(held[i].x), "=r"(held[i].y), "=r"(held[i].z), "=r"(held[i].w)
                     : "r"(tile + i * 512 + lane * 16));
      Byte* to = at_;
      if (mine_) {
#pragma unroll
        for (int i = 0; i < kMoves; ++i, to += stride_) *reinterpret_cast<uint4*>(to) = held[i];
      }
    } else if (own_ != nullptr) {
      for (int token = max(low_, begin_); token < min(low_ + kTile, end_); ++token)
        own_[token * pitch_] = Element(number<Element>(
            take<Element>(tile + (token - low_) * kEmaRow<T> + lane * static_cast<int>(sizeof(T)))));
    }
    __syncwarp();  // before the tile is fetched into again
    advance();
  }

 private:
  using Element = std::remove_const_t<T>;
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  // A lane moves packs of 16 bytes; the warp kRows tokens at once, and a tile in kMoves times.
  static constexpr int kPack = 16 / sizeof(T), kPacks = 32 / kPack, kRows = 32 / kPacks, kTile = kEmaTile<T>,
                       kMoves = kTile / kRows;

  __device__ void advance() { low_ += Step * kTile, at_ += Step * kMoves * stride_; }

  T* own_;  // this lane's channel, if there is one
  Byte* at_;
  int64_t stride_;
  int low_, begin_, end_;
  bool packed_, mine_;
  int64_t pitch_;
};

// Until at most `Left` groups are under way, for the whole warp.
template <int Left>
__device__ void arrived() {
  wait_copies<Left>();
  __syncwarp();
}

// The EmaPlan on the device, and the place of this thread in it.
struct EmaPlace {
  const int *offsets, *rows, *spans, *first_document;
  int span, begin, end;  // tokens
  int channel;           // of lane 0

  __device__ explicit EmaPlace(const Ema& e)
      : offsets(e.plan),
        rows(offsets + e.documents + 1),
        spans(rows + e.documents),
        first_document(spans + e.spans + 1) {
    const int blocks = (e.channels + kEmaThreads - 1) / kEmaThreads;
    span = blockIdx.x / blocks;
    channel = blockIdx.x % blocks * kEmaThreads + threadIdx.x / 32 * 32;
    begin = spans[span], end = spans[span + 1];
  }
  // Whether span p starts inside a document.
  __device__ bool continues(int p) const { return offsets[first_document[p]] < spans[p]; }
};

// (channels, size) of one channel, with zeros for states that do not exist.
template <int N>
__device__ void load(float (&to)[N], const float* from, int channel, const Ema& e) {
#pragma unroll
  for (int n = 0; n < N; ++n)
    to[n] = channel < e.channels && n < e.size ? from[int64_t{channel} * e.size + n] : 0;
}
// (size, channels), as scratch is laid out.
template <int N>
__device__ void load_scratch(float (&to)[N], const float* from, int channel, const Ema& e) {
#pragma unroll
  for (int n = 0; n < N; ++n)
    to[n] = channel < e.channels && n < e.size ? from[int64_t{n} * e.channels + channel] : 0;
}
template <int N>
__device__ void store_scratch(float* to, const float (&from)[N], int channel, const Ema& e) {
#pragma unroll
  for (int n = 0; n < N; ++n)
    if (channel < e.channels && n < e.size) to[int64_t{n} * e.channels + channel] = from[n];
}
template <int N>
__device__ void clear(float (&x)[N]) {
#pragma unroll
  for (int n = 0; n < N; ++n) x[n] = 0;
}

__device__ inline double power(double base, int exponent) {
  double result = 1;
  for (; exponent > 0; exponent /= 2, base *= base)
    if (exponent % 2 == 1) result *= base;
  return result;
}

// Floats of one array of scratch of one span.
__host__ __device__ inline int64_t ema_row(const Ema& e) { return int64_t{e.channels} * e.size; }

// A kernel whose warps walk, each with so much shared memory.
template <auto kernel, int bytes_a_warp, class... A>
void launch(const Ema& e, cudaStream_t stream, const A&... arguments) {
  const int64_t blocks = int64_t{(e.channels + kEmaThreads - 1) / kEmaThreads} * e.spans;
  CHECK(blocks <= INT32_MAX, "ema: ", e.spans, " spans of ", e.channels, " channels");
  constexpr int bytes = kEmaWarps * bytes_a_warp;
  allow_shared<kernel, bytes>("moving average");
  kernel<<<static_cast<unsigned>(blocks), kEmaThreads, bytes, stream>>>(arguments...);
  check_cuda(cudaGetLastError(), "moving average");
}

// Calls f<T, N>() for the element type and the number of states that a thread holds.
template <class F>
void with_ema_shape(const Ema& e, F f) {
  CHECK(e.size >= 1 && e.size <= kMostEmaStates, "ema: ", e.size, " states");
  const auto states = [&]<class T>() {
    if (e.size <= 16)
      f.template operator()<T, 16>();
    else
      f.template operator()<T, 32>();
  };
  CHECK(e.dtype == Dtype::bf16 || e.dtype == Dtype::f32, "ema: bf16 or f32 only");
  e.dtype == Dtype::bf16 ? states.template operator()<bf16>() : states.template operator()<float>();
}

template <class T>
EmaRows<T> ema_rows(const Ema& e, T* data, int64_t pitch) {
  constexpr int pack = 16 / sizeof(T);
  const bool packed =
      reinterpret_cast<uintptr_t>(data) % 16 == 0 && pitch % pack == 0 && e.channels % pack == 0;
  return {data, pitch, e.channels, packed};
}

}  // namespace weft::cuda
