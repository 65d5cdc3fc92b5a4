// The sweep token by token in f32, as the recurrence is written. It is the reference of the tiled kernels,
// takes f32 and bf16, and any width up to 256.

#include "attention/kernels/plain.cuh"
#include "attention/kernels/sweep.h"

namespace weft::cuda {

// kernels

namespace {

// One block: one document, head, sweep and 32 columns of the state. Forward, the state takes in token i
// before it is read and decays by g_i on the way from i - 1; backward, it decays by g_{i+1} on the way from i
// + 1.
template <class T>
__global__ void __launch_bounds__(256) sweep_plain_kernel(const __grid_constant__ Sweeps s) {
  const Sweep& sweep = s.sweep[blockIdx.y];
  const int splits = (s.d_c + plain_columns - 1) / plain_columns;
  const int split = blockIdx.x % splits, head = blockIdx.x / splits % s.heads,
            document = blockIdx.x / splits / s.heads;
  const int lane = threadIdx.x % lanes, column = split * plain_columns + threadIdx.x / lanes;
  const bool inside = column < s.d_c;
  const int2 range = document_range(s, document);

  auto offset = [&](int row) {
    const int64_t base = (int64_t(document) * s.heads + head) * s.d_a * s.d_c;
    return base + (sweep.transposed ? int64_t(column) * s.d_a + row : int64_t(row) * s.d_c + column);
  };
  float state[most_rows];
#pragma unroll
  for (int r = 0; r < most_rows; ++r) {
    const int row = r * lanes + lane;
    state[r] =
        inside && row < s.d_a && sweep.state_in ? sweep.state_in_scale * sweep.state_in[offset(row)] : 0.f;
  }

  __shared__ float sums[32];
  float arriving = 1;  // reverse: exp of the decay of the token before this one in the sweep
  for (int n = 0; n < range.y; ++n) {
    const int64_t token = range.x + (sweep.reverse ? range.y - 1 - n : n);
    const float own = exp2f(log2_decay(s, token, head));
    const float decay = sweep.reverse ? arriving : own;
    const float c = inside ? value<T>(sweep.c, token, int64_t(head) * s.d_c + column) : 0.f;
    float whole = 0;
#pragma unroll
    for (int r = 0; r < most_rows; ++r) {
      const int row = r * lanes + lane;
      if (row >= s.d_a) continue;
      const float a = value<T>(sweep.a, token, int64_t(head) * s.d_a + row);
      const float b = value<T>(sweep.b, token, int64_t(head) * s.d_a + row);
      state[r] *= decay;
      state[r] += b * c;
      whole += a * state[r];
    }
#pragma unroll
    for (int step = 1; step < lanes; step *= 2) whole += __shfl_xor_sync(~0u, whole, step);
    if (inside && lane == 0) {
      const int64_t to = token * sweep.out.pitch + int64_t(head) * s.d_c + column;
      if (sweep.wide)
        static_cast<float*>(sweep.out.data)[to] = s.scale * whole;
      else
        static_cast<T*>(sweep.out.data)[to] = T(s.scale * whole);
    }
    if (sweep.dot_sums) {
      __syncthreads();
      if (lane == 0)
        sums[threadIdx.x / lanes] =
            inside ? s.scale * whole * value<T>(sweep.dot, token, int64_t(head) * s.d_c + column) : 0.f;
      __syncthreads();
      if (threadIdx.x == 0) {
        float sum = 0;
        for (float x : sums) sum += x;
        sweep.dot_sums[(split * s.tokens + token) * s.heads + head] = sum;
      }
    }
    arriving = own;
  }
  const float leaving = sweep.reverse ? arriving : 1.f;
#pragma unroll
  for (int r = 0; r < most_rows; ++r) {
    const int row = r * lanes + lane;
    if (inside && row < s.d_a && sweep.state_out)
      sweep.state_out[offset(row)] = sweep.state_out_scale * leaving * state[r];
  }
  if (sweep.end_dot) {
    float sum = 0;
#pragma unroll
    for (int r = 0; r < most_rows; ++r) {
      const int row = r * lanes + lane;
      if (inside && row < s.d_a) sum += leaving * state[r] * sweep.end_dot[offset(row)];
    }
#pragma unroll
    for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    const int part = split * 8 + threadIdx.x / 32;
    if (threadIdx.x % 32 == 0)
      sweep.end_sums[(int64_t(part) * s.documents + document) * s.heads + head] = sum;
  }
}

}  // namespace

// launchers

int plain_end_parts(int d_c) { return (d_c + plain_columns - 1) / plain_columns * 8; }

void sweep_plain(const Sweeps& s, Dtype dtype, cudaStream_t stream) {
  const dim3 grid(s.documents * s.heads * ((s.d_c + plain_columns - 1) / plain_columns), s.count);
  if (dtype == Dtype::f32)
    sweep_plain_kernel<float><<<grid, 256, 0, stream>>>(s);
  else
    sweep_plain_kernel<__nv_bfloat16><<<grid, 256, 0, stream>>>(s);
  check_cuda(cudaGetLastError(), "linear attention (plain)");
}

}  // namespace weft::cuda
