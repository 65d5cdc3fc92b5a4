// The first stage of the chunked delta rule: of every chunk, decays, T = (I + A)^-1 and P, where
//
//   A_ij = beta_i exp(c_i - c_j) (k_i . k_j)   for j < i,  0 elsewhere
//   P_ij = scale exp(c_i - c_j) (q_i . k_j)    for j <= i, 0 elsewhere.
//
// In f32, by halves of 32 rows: T = [T1 0; -T2 A21 T1, T2]. Of T1 and T2 a thread substitutes forward in a
// column.

#include "attention/kernels/delta_chunk.cuh"

namespace weft::cuda {

// kernels

namespace {

constexpr int pitch = 68;  // floats between columns of A: lanes write it without bank conflicts
constexpr int tile_bytes = 64 * 128 * 2, matrix_bytes = 64 * pitch * 4;
constexpr int inverse_bytes = tile_bytes + matrix_bytes + 128 * 4;

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

// One warp: column threadIdx.x % 32 of the inverse of I + A over 32 rows, in registers; a points at their
// first diagonal element.
__device__ void substitute(float (&x)[32], const float* a) {
#pragma unroll
  for (int i = 0; i < 32; ++i) x[i] = i == threadIdx.x % 32 ? 1.f : 0.f;
#pragma unroll
  for (int j = 0; j < 31; ++j)  // x_i -= A_ij x_j for i > j; A is zero from there up
#pragma unroll
    for (int i = (j + 1) / 4 * 4; i < 32; i += 4) {
      const float4 of = *reinterpret_cast<const float4*>(a + j * pitch + i);
      x[i] -= of.x * x[j], x[i + 1] -= of.y * x[j], x[i + 2] -= of.z * x[j], x[i + 3] -= of.w * x[j];
    }
}

// (row r, columns c .. c + 7) of a product over m in [first, last): left[r][m] at left[m * pitch + r],
// right[m][c] at right[m * pitch + c].
__device__ void multiply(float (&x)[8], const float* left, const float* right, int r, int c, int first,
                         int last) {
  for (float& v : x) v = 0;
#pragma unroll 8
  for (int m = first; m < last; ++m) {
    const float l = left[m * pitch + r];
    const float4 low = *reinterpret_cast<const float4*>(right + m * pitch + c);
    const float4 high = *reinterpret_cast<const float4*>(right + m * pitch + c + 4);
    x[0] += l * low.x, x[1] += l * low.y, x[2] += l * low.z, x[3] += l * low.w;
    x[4] += l * high.x, x[5] += l * high.y, x[6] += l * high.z, x[7] += l * high.w;
  }
}

// T, rounded, from A, whose element A_ij is at a[j * pitch + i]; a is scratch afterwards. A block of 128.
__device__ void invert(float* a, SquareTile inverse) {
  float* t1 = a + 32 * pitch;       // row-major, above A22 where A is zero
  float* t2 = a + 32 * pitch + 32;  // column-major, in A22's place
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp < 2) {
    float x[32];
    substitute(x, warp ? t2 : a);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      if (warp == 0)
        t1[i * pitch + lane] = x[i];
      else
        t2[lane * pitch + i] = x[i];
      const uint32_t to = inverse.at(32 * warp + i, 4 * warp + lane / 8) + lane % 8 * 2;
      asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(uint16_t(pack(x[i], 0))) : "memory");
    }
  } else {  // zeros, right of T1
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t to = inverse.at(lane, 4 + (warp - 2) * 2 + i);
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory");
    }
  }
  __syncthreads();
  float x[8];
  multiply(x, a + 32, t1, lane, 8 * warp, 8 * warp, 32);  // A21 T1, into A11's place
#pragma unroll
  for (int i = 0; i < 8; i += 4)
    *reinterpret_cast<float4*>(a + lane * pitch + 8 * warp + i) = {x[i], x[i + 1], x[i + 2], x[i + 3]};
  __syncthreads();
  const int row = 8 * warp + lane / 4, unit = lane % 4;
  multiply(x, t2, a, row, 8 * unit, 0, 8 * warp + 8);
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(inverse.at(32 + row, unit)),
               "r"(pack(-x[0], -x[1])), "r"(pack(-x[2], -x[3])), "r"(pack(-x[4], -x[5])),
               "r"(pack(-x[6], -x[7]))
               : "memory");
}

// A, element A_ij at a[j * pitch + i] (above the diagonal only within 8 by 8 blocks on it), and P, from
// k k^T and q k^T.
__device__ void weigh_both(float* a, SquareTile p, const Accumulator<64>& of_k, const Accumulator<64>& of_q,
                           const float* level, const float* beta, float scale) {
  const Lane lane;
  const float from[2] = {level[lane.row()], level[lane.row() + 8]};
  const float b[2] = {beta[lane.row()], beta[lane.row() + 8]};
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const uint32_t to = p.at(lane.row(), n) + 4 * lane.t;
    if (n >= 2 * lane.warp + 2) {  // later than all of the warp's rows
      store_shared(to, 0), store_shared(to + 1024, 0);
      continue;
    }
    const int column = 8 * n + 2 * lane.t;
    const float2 past = *reinterpret_cast<const float2*>(level + column);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane.row() + 8 * half;
      const float x = exp2_fast(from[half] - past.x), y = exp2_fast(from[half] - past.y);
      const float* q = of_q.x[n] + 2 * half;
      const float* k = of_k.x[n] + 2 * half;
      store_shared(to + 1024 * half,
                   pack(column <= row ? scale * x * q[0] : 0.f, column < row ? scale * y * q[1] : 0.f));
      a[column * pitch + row] = column < row ? b[half] * x * k[0] : 0.f;
      a[(column + 1) * pitch + row] = column + 1 < row ? b[half] * y * k[1] : 0.f;
    }
  }
}

template <int D_k>
__global__ void __launch_bounds__(128, 5)
    delta_inverse_kernel(const __grid_constant__ DeltaStages s, Rows q_rows, Rows k_rows) {
  const int slot = blockIdx.x / s.heads, head = blockIdx.x % s.heads;
  const DeltaChunk at = chunk_of(s, slot);
  if (at.valid == 0) return;

  // Where k was lie T and P afterwards, where q was lies A.
  extern __shared__ __align__(1024) char raw[];
  const Tile<64, D_k> k{shared_address(raw)}, q{shared_address(raw) + tile_bytes};
  const SquareTile inverse{k.address}, weighed{k.address + inverse.bytes};
  auto* a = reinterpret_cast<float*>(raw + tile_bytes);  // A_ij at a[j * pitch + i]
  auto* gates = reinterpret_cast<float*>(raw + tile_bytes + matrix_bytes);
  const float *level = gates, *beta = gates + 64;

  fetch_rows(k, k_rows, at.token0, at.valid, int64_t(head) * D_k);
  fetch_rows(q, q_rows, at.token0, at.valid, int64_t(head) * D_k);
  if (threadIdx.x < 32) write_gates(s, at, head, gates);
  wait_fetched();
  __syncthreads();

  s.gates[int64_t(blockIdx.x) * 128 + threadIdx.x] = gates[threadIdx.x];
  Accumulator<64> of_q, of_k;
  WarpProducts::a_bt(of_q, TileRows<64, D_k>(q, 0), k, false);
  WarpProducts::a_bt(of_k, TileRows<64, D_k>(k, 0), k, false);
  __syncthreads();
  weigh_both(a, weighed, of_k, of_q, level, beta, s.scale);
  __syncthreads();
  invert(a, inverse);
  __syncthreads();
  store_tile(s.inverse, blockIdx.x, inverse);
  store_tile(s.scores, blockIdx.x, weighed);
}

template <int D_k>
void launch(const DeltaStages& s, Rows q, Rows k, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(delta_slots(s.tokens, s.documents) * s.heads);
  delta_inverse_kernel<D_k><<<blocks, 128, inverse_bytes, stream>>>(s, q, k);
  check_cuda(cudaGetLastError(), "delta rule (inverse)");
}

}  // namespace

// launchers

void delta_inverse(const DeltaStages& s, Rows q, Rows k, cudaStream_t stream) {
  if (s.d_k == 64)
    launch<64>(s, q, k, stream);
  else
    launch<128>(s, q, k, stream);
}

}  // namespace weft::cuda
