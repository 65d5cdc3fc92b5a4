#pragma once
// What the moving average's kernels on tensor cores share (moving_average.md, "Matrices"):
// tiles that lie transposed in shared memory, tables of a channel as operands, sums along chunks.

#include "attention/kernels/ema.cuh"
#include "attention/kernels/ema_plan.h"
#include "attention/kernels/tile.cuh"

namespace weft::cuda {

constexpr int kEmaChunk = 16, kEmaStates = 16;
constexpr int kEmaWidth = 16;               // channels of a block
constexpr int kEmaTokens = kEmaMatrixTile;  // of a tile

// Keeps the compiler from working x out anew wherever it is used.
__device__ inline void keep_value(uint32_t& x) { asm("" : "+r"(x)); }

// 16 channels of a tile in shared memory, channel by channel, in units of 8 tokens. Units are permuted so
// that neither the rows of a matrix of chunks nor those of one of channels meet in a bank.
constexpr int kEmaMatrixBytes = kEmaWidth * kEmaTokens * 2;
__device__ inline uint32_t ema_unit(int channel, int unit) {
  const int key = (channel >> 3) * 2 + (channel & 1) * 4;
  return channel * (kEmaTokens * 2) + (unit ^ (unit >> 3) ^ key) * 16;
}
// For load_matrices and store_matrices of a channel: x[0], x[1] are tokens 0 to 7 of the chunks
// Chunks g and Chunks g + 1, x[2] and x[3] tokens 8 to 15. With four chunks ^ 64 is the other two; with two,
// (^ 64) + 512 is the tile's other half.
template <int Chunks>
__device__ uint32_t ema_chunks(int channel) {
  const int lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;
  return ema_unit(channel, 2 * (Chunks * row + (matrix & 1)) + (matrix >> 1));
}
// For store_matrices_transposed and load_matrices_transposed of this warp's tokens, one of Warps: x of thread
// (g, t) are channels 8 (t & 1) .. 8 (t & 1) + 7 of token ema_token(). ^ 32 i is the i-th 16 tokens.
template <int Warps>
__device__ uint32_t ema_channels() {
  const int lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;
  const int channel = (row >> 1 & 1) * 8 + 2 * matrix + (row & 1);
  return ema_unit(channel, threadIdx.x / 32 * (kEmaTokens / 8 / Warps) + (row >> 2));
}
template <int Warps>
__device__ int ema_token() {
  const int lane = threadIdx.x % 32;
  return threadIdx.x / 32 * (kEmaTokens / Warps) + lane / 4 + 8 * (lane >> 1 & 1);
}

// A tile's way in: each thread copies what it will itself put into tiles, so a stage needs no barrier.
// Turned: chunks come with their tokens turned round.
template <int Warps, bool Turned>
class EmaMatrixSource {
 public:
  static constexpr int kPieces = kEmaTokens / Warps / 16, kBytes = kEmaMatrixBytes;  // of a stage

  __device__ EmaMatrixSource(const EmaRows<const bf16>& m, int channel, uint32_t stages)
      : pitch_(m.pitch), own_(stages + threadIdx.x * 16) {
    const int mine = channel + 8 * (threadIdx.x & 1);
    // Of channels that do not exist all tokens are behind the end.
    token_ = mine < m.channels ? ema_token<Warps>() ^ (Turned ? 15 : 0) : INT32_MAX / 2;
    from_ = m.data + (mine < m.channels ? mine : 0);
  }
  // The i-th piece of a tile of tokens [begin, end), into a stage.
  __device__ void fetch(int stage, int i, int begin, int end) const {
    const int at = token_ + 16 * i;
    const bool inside = at < end - begin;
    copy_async(own_ + stage * kBytes + i * (kBytes / kPieces), inside ? from_ + (begin + at) * pitch_ : from_,
               inside);
  }
  // to: ema_channels() of a tile
  __device__ void put(int stage, int i, uint32_t to) const {
    const uint4 v = load_shared(own_ + stage * kBytes + i * (kBytes / kPieces));
    store_matrices_transposed(to ^ 32 * i, {v.x, v.y, v.z, v.w});
  }

 private:
  const bf16* from_;
  int64_t pitch_;
  uint32_t own_;
  int token_;
};

// A tile's way out: the i-th piece of tokens [begin, end). from: ema_channels() of the tile.
template <int Warps>
__device__ void send_matrix(const EmaRows<bf16>& m, int channel, uint32_t from, int i, int begin, int end) {
  const int mine = channel + 8 * (threadIdx.x & 1), at = ema_token<Warps>() + 16 * i;
  uint32_t x[4];
  load_matrices_transposed(x, from ^ 32 * i);
  if (at < end - begin && mine < m.channels)
    *reinterpret_cast<uint4*>(m.data + (begin + at) * m.pitch + mine) = {x[0], x[1], x[2], x[3]};
}

// A (16, 16) table as the right side of products, in two bf16: 16 bits of each entry.
struct EmaTable {
  uint32_t high[2][2], rest[2][2];

  // f(k, n): row and column. All lanes call it alike.
  template <class F>
  __device__ explicit EmaTable(F f) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const float x = f(2 * t + 8 * k, g + 8 * n), y = f(2 * t + 8 * k + 1, g + 8 * n);
        high[n][k] = pack(x, y);
        const float2 kept = unpack(high[n][k]);
        rest[n][k] = pack(x - kept.x, y - kept.y);
      }
  }
};

// d (16, 16) += a (16, 16) times the table's parts. Products that wait for each other lie apart: a warp does
// not go on past one that waits.
__device__ inline void add_high(float (&d)[2][4], const uint32_t (&a)[4], const EmaTable& b) {
#pragma unroll
  for (int n = 0; n < 2; ++n) WarpProducts::mma(d[n], a, b.high[n][0], b.high[n][1]);
}
__device__ inline void add_rest(float (&d)[2][4], const uint32_t (&a)[4], const EmaTable& b) {
#pragma unroll
  for (int n = 0; n < 2; ++n) WarpProducts::mma(d[n], a, b.rest[n][0], b.rest[n][1]);
}

__device__ inline float small_power(float base, int exponent) {  // of 0 to 31
  float result = 1;
#pragma unroll
  for (int bit = 0; bit < 5; ++bit, base *= base)
    if (exponent >> bit & 1) result *= base;
  return result;
}

// A channel's coefficients: lane n has those of state n.
struct EmaChannel {
  float q, w;  // decay; in times out

  __device__ EmaChannel(const Ema& e, int channel) : q(0), w(0) {
    const int n = threadIdx.x % 32;
    if (channel < e.channels && n < e.size) {
      const int64_t at = int64_t{channel} * e.size + n;
      q = e.decay[at], w = e.in[at] * e.out[at];
    }
  }
  __device__ float decay(int state) const { return __shfl_sync(~0u, q, state); }
  __device__ float weight(int state) const { return __shfl_sync(~0u, w, state); }
  // Of a lag of lane tokens: sum over states of w q^lag.
  __device__ float response() const {
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kEmaStates; ++n) sum = fmaf(weight(n), small_power(decay(n), threadIdx.x & 15), sum);
    return sum;
  }
};

// Sums along the chunks of a tile. Of the accumulators of a product with a table of states, this thread's
// state i is column 2t + (i & 1) of product i / 2; its chunks are neighbours, and those of g + 1 (Backward:
// g - 1) follow.
template <int Chunks, bool Backward>
struct EmaScan {
  float chunk[4];     // decay over a chunk
  float group[3][4];  // over the chunks of 1, 2, 4 threads; zero where there are not so many before this one

  __device__ explicit EmaScan(const EmaChannel& c) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, before = Backward ? 7 - g : g;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const double q = c.decay(8 * (i / 2) + 2 * t + (i & 1)), q2 = q * q, q4 = q2 * q2, q8 = q4 * q4;
      double power = q8 * q8;
      chunk[i] = static_cast<float>(power);
#pragma unroll
      for (int j = 1; j < Chunks; j *= 2) power *= power;
#pragma unroll
      for (int j = 0; j < 3; ++j, power *= power)
        group[j][i] = before >> j > 0 ? static_cast<float>(power) : 0.f;
    }
  }
  // own: what this thread's chunks leave of a state of zero. carry: the state behind the tile before this
  // one, in the threads with the last chunks. to: the state before this thread's chunks. States take turns,
  // because a shuffle is not passed by the next.
  __device__ void before(float (&to)[4], const float (&own)[4], const float (&carry)[4]) const {
    const int lane = threadIdx.x % 32, g = lane / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      to[i] =
          __shfl_sync(~0u, g == (Backward ? 0 : 7) ? carry[i] : own[i], (lane + (Backward ? 4 : 28)) % 32);
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      float other[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        other[i] = Backward ? __shfl_down_sync(~0u, to[i], 4 << j) : __shfl_up_sync(~0u, to[i], 4 << j);
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i] = fmaf(group[j][i], other[i], to[i]);
    }
  }
};

// The plan on the device, and the place of this block in it: 16 channels of a span.
struct EmaMatrixPlace {
  const int *offsets, *spans, *first_document;
  int span, channel;

  __device__ explicit EmaMatrixPlace(const Ema& e)
      : offsets(e.plan), spans(offsets + 2 * e.documents + 1), first_document(spans + e.spans + 1) {
    const int blocks = (e.channels + kEmaWidth - 1) / kEmaWidth;
    span = static_cast<int>(blockIdx.x) / blocks;
    channel = static_cast<int>(blockIdx.x) % blocks * kEmaWidth;
  }
  __device__ bool continues(int p) const { return offsets[first_document[p]] < spans[p]; }
};

template <auto kernel, int threads, int bytes, class... A>
void launch_matrices(const Ema& e, cudaStream_t stream, const A&... arguments) {
  const int64_t blocks = int64_t{(e.channels + kEmaWidth - 1) / kEmaWidth} * e.spans;
  CHECK(blocks <= INT32_MAX, "ema: ", e.spans, " spans of ", e.channels, " channels");
  allow_shared<kernel, bytes>("moving average");
  kernel<<<static_cast<unsigned>(blocks), threads, bytes, stream>>>(arguments...);
  check_cuda(cudaGetLastError(), "moving average");
}

constexpr int kEmaForwardStages = 3, kEmaBackwardStages = 2;  // of tiles on their way in
// A tile that is turned, one in work and one on its way out; backward also two of x; room to align them.
constexpr int kEmaForwardBytes = (3 + kEmaForwardStages) * kEmaMatrixBytes + 128;
constexpr int kEmaBackwardBytes = (5 + 2 * kEmaBackwardStages) * kEmaMatrixBytes + 128;

// Whether the plan wants matrices and the GPU has so much shared memory for a block.
inline bool by_matrices(const Ema& e, int bytes) {
  return e.matrices && device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) >= bytes;
}
// For documents without states before and behind them; all rows packed. states, sums: see the kernels.
void ema_matrix_states(const Ema& e, const EmaRows<const bf16>& x, float* states, cudaStream_t stream);
void ema_matrix_forward(const Ema& e, const EmaRows<const bf16>& x, const EmaRows<bf16>& y, float* states,
                        cudaStream_t stream);
void ema_matrix_adjoints(const Ema& e, const EmaRows<const bf16>& dy, float* states, cudaStream_t stream);
void ema_matrix_backward(const Ema& e, const EmaRows<const bf16>& x, const EmaRows<const bf16>& dy,
                         const EmaRows<bf16>& dx, float* sums, float* states, cudaStream_t stream);

}  // namespace weft::cuda
