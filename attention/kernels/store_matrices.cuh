#pragma once
// Stores of 8 x 8 matrices of bf16 from registers to shared memory, the way back of load_matrices, and copies
// to shared memory that may bring zeros.

#include <cstdint>

namespace weft::cuda {

// Four matrices; `address` of lane 8 i + r is where row r of matrix i goes, 16 bytes. Of each matrix thread
// (g, t) holds columns 2t and 2t + 1 of row g.
__device__ inline void store_matrices(uint32_t address, const uint32_t (&x)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t row = __shfl_sync(~0u, address, 8 * i + threadIdx.x % 32 / 4);
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(row + threadIdx.x % 4 * 4), "r"(x[i]) : "memory");
  }
#else
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x[0]),
               "r"(x[1]), "r"(x[2]), "r"(x[3])
               : "memory");
#endif
}
// The same, each transposed on its way: `address` is of columns.
__device__ inline void store_matrices_transposed(uint32_t address, const uint32_t (&x)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  uint32_t turned[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned[i]) : "r"(x[i]));
  store_matrices(address, turned);
#else
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
               : "memory");
#endif
}

// 16 bytes, part of the group of copies that is open; zeros if not inside, and then nothing is read.
__device__ inline void copy_ahead(uint32_t to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0)
               : "memory");
}
__device__ inline void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `Left` of this thread's groups are under way.
template <int Left>
__device__ void groups_left() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

}  // namespace weft::cuda
