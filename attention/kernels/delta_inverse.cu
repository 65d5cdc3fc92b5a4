// The first stage of the chunked delta rule: of every chunk, decays and T = (I + A)^-1, where
//
//   A_ij = beta_i exp(c_i - c_j) (k_i . k_j)  for j < i,  0 elsewhere.
//
// Thread j substitutes forward in column j of T, in f32 registers.

#include "attention/kernels/delta_chunk.cuh"

namespace weft::cuda {

// kernels

namespace {

constexpr int pitch = 68;  // floats between columns of A: lanes write it without bank conflicts

template <int D_k>
constexpr int inverse_bytes = Tile<64, D_k>::bytes + (64 * pitch + 128) * 4;

// One warp: gates[0 .. 63] = the running sum of log2 decays, gates[64 .. 127] = beta.
__device__ void write_gates(const DeltaStages& s, const DeltaChunk& at, int head, float* gates) {
  const int lane = threadIdx.x;
  float g[2], beta[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool inside = 2 * lane + i < at.valid;
    const int64_t of = (at.token0 + 2 * lane + i) * s.heads + head;
    g[i] = inside && s.log_decay ? fmaxf(1.44269504f * s.log_decay[of], -150.f) : 0.f;
    beta[i] = inside ? s.beta[of] : 0.f;
  }
  float sum = g[0] + g[1];
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const float other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  gates[2 * lane] = sum - g[1], gates[2 * lane + 1] = sum;
  gates[64 + 2 * lane] = beta[0], gates[64 + 2 * lane + 1] = beta[1];
}

template <int D_k>
__global__ void __launch_bounds__(128)
    delta_inverse_kernel(const __grid_constant__ DeltaStages s, Rows rows) {
  const int slot = blockIdx.x / s.heads, head = blockIdx.x % s.heads;
  const DeltaChunk at = chunk_of(s, slot);
  if (at.valid == 0) return;

  extern __shared__ __align__(1024) char raw[];
  const Tile<64, D_k> k{shared_address(raw)};
  auto* a = reinterpret_cast<float*>(raw + k.bytes);  // A_ij at a[j * pitch + i]
  float* gates = a + 64 * pitch;
  const float *level = gates, *beta = gates + 64;

  fetch_rows(k, rows, at.token0, at.valid, int64_t(head) * D_k);
  if (threadIdx.x < 32) write_gates(s, at, head, gates);
  wait_fetched();
  __syncthreads();

  s.gates[int64_t(blockIdx.x) * 128 + threadIdx.x] = gates[threadIdx.x];
  Accumulator<64> scores;
  WarpProducts::a_bt(scores, load(k), k, false);
  const Lane lane;
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = lane.row() + (i / 2) * 8, column = 8 * n + 2 * lane.t + i % 2;
      const float x = beta[row] * exp2_fast(level[row] - level[column]) * scores.x[n][i];
      a[column * pitch + row] = column < row ? x : 0.f;
    }
  __syncthreads();

  const SquareTile inverse{k.address};  // k has been read
  if (threadIdx.x < 64) {
    const int column = threadIdx.x;
    float x[64];
#pragma unroll
    for (int i = 0; i < 64; ++i) x[i] = i == column ? 1.f : 0.f;
    auto eliminate = [&](int j) {  // x_i -= A_ij x_j for i > j
#pragma unroll
      for (int i = (j + 1) / 4 * 4; i < 64; i += 4) {
        const float4 of = *reinterpret_cast<const float4*>(a + j * pitch + i);
        x[i] -= of.x * x[j], x[i + 1] -= of.y * x[j], x[i + 2] -= of.z * x[j], x[i + 3] -= of.w * x[j];
      }
    };
    if (column < 32) {  // the other warp's columns are zero there
#pragma unroll
      for (int j = 0; j < 32; ++j) eliminate(j);
    }
#pragma unroll
    for (int j = 32; j < 63; ++j) eliminate(j);
#pragma unroll
    for (int i = 0; i < 64; i += 2) {
      const uint32_t pair = pack(x[i], x[i + 1]);
      const uint32_t to = inverse.at(i, column / 8) + column % 8 * 2;
      const uint32_t next = inverse.at(i + 1, column / 8) + column % 8 * 2;
      asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(uint16_t(pair)) : "memory");
      asm volatile("st.shared.u16 [%0], %1;" ::"r"(next), "h"(uint16_t(pair >> 16)) : "memory");
    }
  }
  __syncthreads();
  store_image(s.inverse + int64_t(blockIdx.x) * inverse.bytes, inverse.address, inverse.bytes);
}

template <int D_k>
void launch(const DeltaStages& s, Rows k, cudaStream_t stream) {
  const auto kernel = delta_inverse_kernel<D_k>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, inverse_bytes<D_k>),
             "delta rule (inverse)");
  const auto blocks = static_cast<unsigned>(delta_slots(s.tokens, s.documents) * s.heads);
  kernel<<<blocks, 128, inverse_bytes<D_k>, stream>>>(s, k);
  check_cuda(cudaGetLastError(), "delta rule (inverse)");
}

}  // namespace

// launchers

void delta_inverse(const DeltaStages& s, Rows k, cudaStream_t stream) {
  if (s.d_k == 64)
    launch<64>(s, k, stream);
  else
    launch<128>(s, k, stream);
}

}  // namespace weft::cuda
