#pragma once
// What the kernels of the moving average share: tokens of a warp's 32 channels on their way through shared
// memory, and who walks where. Warps are independent of each other.

#include <type_traits>

#include "attention/kernels/ema.h"
#include "attention/kernels/sweep.h"

namespace weft::cuda {

constexpr int kEmaWarps = 4, kEmaThreads = 32 * kEmaWarps;
// Tiles of one warp: 2 KB, one in work and two under way.
constexpr int kEmaStages = 3;
template <class T>
constexpr int kEmaTile = 64 / sizeof(T);  // tokens
constexpr int kEmaUnroll = 8;             // tokens that are computed without a branch

template <class T>
struct EmaTiles {
  alignas(16) T at[kEmaWarps][kEmaStages][kEmaTile<T> * 32];
};

// A matrix (tokens, channels).
template <class T>
struct EmaRows {
  T* data;
  int64_t pitch;
  int channels;
  bool packed;  // in pieces of 16 bytes
};

// Tiles of such a matrix, 32 channels wide, that lie one behind the other, or before the other if Step is -1.
// Only tokens [begin, end) are touched.
template <class T, int Step>
class EmaMover {
 public:
  __device__ EmaMover(const EmaRows<T>& m, int channel, int low, int begin, int end)
      : pitch_(m.pitch), low_(low), begin_(begin), end_(end), packed_(m.packed) {
    const int lane = threadIdx.x % 32, column = packed_ ? lane % kPacks * kPack : lane;
    row_ = packed_ ? lane / kPacks : 0;
    mine_ = channel + column < m.channels;
    at_ = m.data + int64_t{low + row_} * pitch_ + channel + column;
  }

  // Without waiting, where packed. Every call is one group of asynchronous copies.
  __device__ void fetch(std::remove_const_t<T>* tile) {
    const int lane = threadIdx.x % 32;
    if (mine_ && packed_) {
      const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(tile + lane * kPack));
      const bool whole = low_ >= begin_ && low_ + kTile <= end_;
#pragma unroll
      for (int i = 0; i < kTile / kRows; ++i)
        if (whole || touched(i * kRows + row_))
          asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i * 32 * 16),
                       "l"(at_ + i * kRows * pitch_));
    } else if (mine_) {
#pragma unroll 4
      for (int row = 0; row < kTile; ++row)
        if (touched(row)) tile[row * 32 + lane] = at_[row * pitch_];
    }
    asm volatile("cp.async.commit_group;");
    advance();
  }

  __device__ void send(const std::remove_const_t<T>* tile) {
    const int lane = threadIdx.x % 32;
    __syncwarp();
    if (mine_ && packed_) {
      const bool whole = low_ >= begin_ && low_ + kTile <= end_;
#pragma unroll
      for (int i = 0; i < kTile / kRows; ++i)
        if (whole || touched(i * kRows + row_))
          *reinterpret_cast<uint4*>(at_ + i * kRows * pitch_) =
              *reinterpret_cast<const uint4*>(tile + (i * 32 + lane) * kPack);
    } else if (mine_) {
#pragma unroll 4
      for (int row = 0; row < kTile; ++row)
        if (touched(row)) at_[row * pitch_] = tile[row * 32 + lane];
    }
    __syncwarp();  // before the tile is fetched into again
    advance();
  }

 private:
  // A lane moves packs of 16 bytes; the warp kRows rows at once.
  static constexpr int kTile = kEmaTile<std::remove_const_t<T>>, kPack = 16 / sizeof(T), kPacks = 32 / kPack,
                       kRows = 32 / kPacks;

  __device__ bool touched(int row) const { return low_ + row >= begin_ && low_ + row < end_; }
  __device__ void advance() { low_ += Step * kTile, at_ += Step * kTile * pitch_; }

  T* at_;
  int64_t pitch_;
  int low_, begin_, end_, row_;
  bool packed_, mine_;
};

// Until at most `Left` groups are under way, for the whole warp.
template <int Left>
__device__ void arrived() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
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

inline unsigned ema_blocks(const Ema& e) {
  const int64_t blocks = int64_t{(e.channels + kEmaThreads - 1) / kEmaThreads} * e.spans;
  CHECK(blocks <= INT32_MAX, "ema: ", e.spans, " spans of ", e.channels, " channels");
  return static_cast<unsigned>(blocks);
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
