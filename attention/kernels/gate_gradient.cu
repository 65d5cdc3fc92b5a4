// The gradient of a gate per token and head, from row sums the dq and dk sweeps leave behind (README, "The
// gradient of the gate").

#include "attention/kernels/sweep.h"

namespace weft::cuda {

// kernels

namespace {

constexpr int block = 1024;  // tokens at a time, from the document's end to its start

// The sum of x over threads i >= threadIdx.x.
__device__ float suffix_sum(float x, float (&of_warp)[32]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const float other = __shfl_down_sync(~0u, x, step);
    if (lane + step < 32) x += other;
  }
  __syncthreads();
  if (lane == 0) of_warp[warp] = x;
  __syncthreads();
  for (int w = warp + 1; w < block / 32; ++w) x += of_warp[w];
  return x;
}

__global__ void __launch_bounds__(block) gate_gradient_kernel(const GateGradient g) {
  __shared__ float of_warp[32];
  __shared__ double later;  // what arrives from behind the tokens at hand
  const int head = blockIdx.x % g.heads, document = blockIdx.x / g.heads;
  const int length = g.offsets ? g.offsets[document + 1] - g.offsets[document] : int(g.tokens / g.documents);
  const int64_t start = g.offsets ? g.offsets[document] : int64_t(document) * length;

  if (threadIdx.x == 0) {
    later = 0;
    for (int part = 0; part < g.end_parts; ++part)
      later += g.end_sums[(int64_t(part) * g.documents + document) * g.heads + head];
  }

  for (int tile = (length + block - 1) / block - 1; tile >= 0; --tile) {
    const int token = tile * block + threadIdx.x;
    float x = 0;
    for (int split = 0; token < length && split < g.splits; ++split) {
      const int64_t at = (split * g.tokens + start + token) * g.heads + head;
      x += g.q_sums[at] - g.k_sums[at];
    }
    const float sum = suffix_sum(x, of_warp);
    if (token < length) g.d_log_decay[(start + token) * g.heads + head] = static_cast<float>(later + sum);
    __syncthreads();
    if (threadIdx.x == 0) later += sum;
  }
}

}  // namespace

// launchers

void gate_gradient(const GateGradient& g, cudaStream_t stream) {
  gate_gradient_kernel<<<g.heads * g.documents, block, 0, stream>>>(g);
  check_cuda(cudaGetLastError(), "linear attention (gate gradient)");
}

}  // namespace weft::cuda
