#pragma once
// A document as the sweeps of delta_sweep.cu go through it: a warpgroup's part of it, and what both ways
// share.

#include "attention/kernels/delta_chunk.cuh"

namespace weft::cuda {

// Whose document, head and columns of v a warpgroup has.
struct Part {
  int document, head, column0;
  int64_t column;  // of v's rows
  int first, length, chunks;
  int64_t slot0;

  __device__ Part(const DeltaStages& s, int W) : Part(s, W, threadIdx.x / 128) {}
  __device__ Part(const DeltaStages& s, int W, int own) {
    const int splits = s.d_v / (64 * W), of = blockIdx.x / splits;
    document = of / s.heads, head = of % s.heads;
    column0 = (blockIdx.x % splits * W + own) * 64, column = int64_t(head) * s.d_v + column0;
    const int2 range = document_range(s, document);
    first = range.x, length = range.y, chunks = (length + delta_tokens - 1) / delta_tokens;
    slot0 = slot_of(first, document, 0);
  }
  __device__ int64_t token0(int chunk) const { return first + int64_t(chunk) * delta_tokens; }
  __device__ int valid(int chunk) const { return min(delta_tokens, length - chunk * delta_tokens); }
  // Of what stages keep of a chunk: of the chunk's part, and of that part's 64 columns of v.
  __device__ int64_t unit(const DeltaStages& s, int chunk) const { return (slot0 + chunk) * s.heads + head; }
  __device__ int64_t split_unit(const DeltaStages& s, int chunk) const {
    return unit(s, chunk) * (s.d_v / 64) + column0 / 64;
  }
  __device__ Crew crew() const { return {int(threadIdx.x % 128), 128}; }  // the warpgroup
};

// f(value, offset in the states of memory) over this thread's part of a transposed state.
template <int D_k, class F>
__device__ void each(Accumulator<D_k>& state, const DeltaStages& s, const Part& at, F f) {
  const Lane lane;
  const int64_t base = (int64_t(at.document) * s.heads + at.head) * D_k * s.d_v + at.column0;
#pragma unroll
  for (int n = 0; n < D_k / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      f(state.x[n][i], base + int64_t(8 * n + 2 * lane.t + i % 2) * s.d_v + lane.row() + (i / 2) * 8);
}

// beta_i (v_i - exp(c_i) answer_i): what a chunk would write if its keys never met.
__device__ inline void correct(Accumulator<64>& answer, SquareTile v, const float* level, const float* beta) {
  const Lane lane;
  const int row = lane.row();
  const float decay[2] = {exp2_fast(level[row]), exp2_fast(level[row + 8])};
  const float b[2] = {beta[row], beta[row + 8]};
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 value = unpack(load_shared_word(v.at(row, n) + 4 * lane.t + half * 1024));
      float* x = answer.x[n] + 2 * half;
      x[0] = b[half] * (value.x - decay[half] * x[0]);
      x[1] = b[half] * (value.y - decay[half] * x[1]);
    }
}

}  // namespace weft::cuda
