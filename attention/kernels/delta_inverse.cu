// The first stage of the chunked delta rule: of every chunk, decays, T = (I + A)^-1 and P, where
//
//   A_ij = beta_i exp(c_i - c_j) (k_i . k_j)   for j < i,  0 elsewhere
//   P_ij = scale exp(c_i - c_j) (q_i . k_j)    for j <= i, 0 elsewhere.
//
// In f32, by halves: T = [T1 0; -T2 A21 T1, T2], and so T1 and T2, from blocks of 16 rows. Of these a thread
// substitutes forward in a column.

#include "attention/kernels/delta_chunk.cuh"

namespace weft::cuda {

// kernels

namespace {

constexpr int pitch = 68;  // floats between columns of A: lanes write it without bank conflicts
constexpr int tile_bytes = 64 * 128 * 2, matrix_bytes = 64 * pitch * 4;
constexpr int inverse_bytes = tile_bytes + matrix_bytes + 128 * 4 + 8;

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

// One warp, its halves alike: column threadIdx.x % 16 of the inverse of I + A over 16 rows, in registers; a
// points at their first diagonal element.
__device__ void substitute(float (&x)[16], const float* a) {
#pragma unroll
  for (int i = 0; i < 16; ++i) x[i] = i == threadIdx.x % 16 ? 1.f : 0.f;
#pragma unroll
  for (int j = 0; j < 15; ++j)  // x_i -= A_ij x_j for i > j; A is zero from there up
#pragma unroll
    for (int i = (j + 1) / 4 * 4; i < 16; i += 4) {
      const float4 of = *reinterpret_cast<const float4*>(a + j * pitch + i);
      x[i] -= of.x * x[j], x[i + 1] -= of.y * x[j], x[i + 2] -= of.z * x[j], x[i + 3] -= of.w * x[j];
    }
}

// (row r, columns c .. c + N - 1) of a product over m in [first, last): left[r][m] at left[m * pitch + r],
// right[m][c] at right[m * pitch + c].
template <int N>
__device__ void multiply(float (&x)[N], const float* left, const float* right, int r, int c, int first,
                         int last) {
  for (float& v : x) v = 0;
#pragma unroll 8
  for (int m = first; m < last; ++m) {
    const float l = left[m * pitch + r];
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const float4 of = *reinterpret_cast<const float4*>(right + m * pitch + c + i);
      x[i] += l * of.x, x[i + 1] += l * of.y, x[i + 2] += l * of.z, x[i + 3] += l * of.w;
    }
  }
}
__device__ inline void store_four(float* to, const float* x) {
  *reinterpret_cast<float4*>(to) = {x[0], x[1], x[2], x[3]};
}

// T, rounded, from A, whose element A_ij is at a[j * pitch + i]; a is scratch afterwards. A block of 128.
// Right of a product stands what lies by rows, left what lies by columns; nothing above the diagonal of A is
// read, so it has room for more.
__device__ void invert(float* a, SquareTile inverse) {
  constexpr int diagonal = 16 * (pitch + 1);  // floats from one block of 16 on it to the next
  float* t1 = a + 32 * pitch;                 // by rows, above A22
  float* t2 = a + 2 * diagonal;               // by columns, in A22's place
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  // A block of 16 a warp: by rows into T1, and above its diagonal what T1 has no place for; by columns in
  // A's place.
  {
    float x[16];
    substitute(x, a + warp * diagonal);
    __syncwarp();
    const int column = lane % 16;
    const bool low = lane < 16;
    float* by_rows = t1 + warp % 2 * 16 * pitch + (warp + 1) / 2 * 16;
    float* by_columns = a + warp * diagonal + column * pitch;
#pragma unroll
    for (int i = 0; i < 16; i += 4) {
      if (low) {
#pragma unroll
        for (int j = i; j < i + 4; ++j) by_rows[j * pitch + column] = x[j];
      } else {
        store_four(by_columns + i, x + i);
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t to = inverse.at(16 * warp + (low ? i : 8 + i), 2 * warp + column / 8) + column % 8 * 2;
      asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(uint16_t(pack(low ? x[i] : x[8 + i], 0)))
                   : "memory");
    }
    for (int block = warp + 1; block < 4; ++block) {  // zeros
      const uint32_t to = inverse.at(16 * warp + column, 2 * block + lane / 16);
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory");
    }
  }
  // Two warps: the block of 16 below the diagonal of T1, or of T2.
  {
    const int pair = warp / 2, row = threadIdx.x % 16, column = threadIdx.x % 64 / 16 * 4;
    float* between = a + 16 * pitch + pair * 2 * diagonal;
    float x[4];
    sync_threads(1 + pair, 64);
    multiply(x, a + pair * 2 * diagonal + 16, t1 + pair * 16, row, column, 0, 16);
    store_four(between + row * pitch + column, x);
    sync_threads(1 + pair, 64);
    multiply(x, a + (2 * pair + 1) * diagonal, between, row, column, 0, 16);
#pragma unroll
    for (float& v : x) v = -v;
    if (pair == 0) {
      store_four(t1 + (16 + row) * pitch + column, x);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) t2[(column + i) * pitch + 16 + row] = x[i];
    }
    const uint32_t to = inverse.at(32 * pair + 16 + row, 4 * pair + column / 8) + column % 8 * 2;
    store_shared(to, pack(x[0], x[1])), store_shared(to + 4, pack(x[2], x[3]));
  }
  __syncthreads();
  float x[8];
  multiply(x, a + 32, t1, lane, 8 * warp, 8 * warp, 32);  // A21 T1, into A11's place
  store_four(a + lane * pitch + 8 * warp, x), store_four(a + lane * pitch + 8 * warp + 4, x + 4);
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

template <bool Wgmma, int D_k>
__global__ void __launch_bounds__(128, 5)
    delta_inverse_kernel(const __grid_constant__ DeltaStages s, const __grid_constant__ MappedRows of_q,
                         const __grid_constant__ MappedRows of_k) {
  using Products = ProductsOf<Wgmma>;
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
  const Barrier full{shared_address(gates + 128)};

  const bool rows = !by_tma<Products> || at.valid < delta_tokens;
  if constexpr (by_tma<Products>) {
    if (threadIdx.x == 0 && !rows) {
      full.init(1);
      publish_barriers();
      full.arrive_and_expect(2 * k.bytes);
      copy_rows_in(k, of_k.map, 0, head, at.token0, full);
      copy_rows_in(q, of_q.map, 0, head, at.token0, full);
    }
  }
  if (rows) {
    fetch_rows(k, of_k.rows, at.token0, at.valid, int64_t(head) * D_k);
    fetch_rows(q, of_q.rows, at.token0, at.valid, int64_t(head) * D_k);
  }
  if (threadIdx.x < 32) write_gates(s, at, head, gates);
  wait_fetched();
  publish_tiles<Products>();
  if constexpr (by_tma<Products>) {
    if (!rows) full.wait(0);
  }

  s.gates[int64_t(blockIdx.x) * 128 + threadIdx.x] = gates[threadIdx.x];
  Accumulator<64> q_k, k_k;
  Products::start(q_k), Products::start(k_k);
  Products::a_bt(q_k, TileRows<64, D_k>(q, 0), k, false);
  Products::a_bt(k_k, TileRows<64, D_k>(k, 0), k, false);
  finish<Products>(q_k, k_k);
  __syncthreads();
  weigh_both(a, weighed, k_k, q_k, level, beta, s.scale);
  __syncthreads();
  invert(a, inverse);
  publish_tiles<Products>();
  if constexpr (by_tma<Products>) {
    if (threadIdx.x == 0) {
      copy_tile_out(s.inverse, blockIdx.x, inverse);
      copy_tile_out(s.scores, blockIdx.x, weighed);
      copy_out_wait();
    }
  } else {
    store_tile(s.inverse, blockIdx.x, inverse);
    store_tile(s.scores, blockIdx.x, weighed);
  }
}

template <bool Wgmma, int D_k>
void launch(const DeltaStages& s, const MappedRows& q, const MappedRows& k, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(delta_slots(s.tokens, s.documents) * s.heads);
  delta_inverse_kernel<Wgmma, D_k><<<blocks, 128, inverse_bytes, stream>>>(s, q, k);
  check_cuda(cudaGetLastError(), "delta rule (inverse)");
}

}  // namespace

// launchers

void delta_inverse(const DeltaStages& s, bool wgmma, const MappedRows& q, const MappedRows& k,
                   cudaStream_t stream) {
  if (wgmma)
    s.d_k == 64 ? launch<true, 64>(s, q, k, stream) : launch<true, 128>(s, q, k, stream);
  else
    s.d_k == 64 ? launch<false, 64>(s, q, k, stream) : launch<false, 128>(s, q, k, stream);
}

}  // namespace weft::cuda
