#pragma once
// Memory read far ahead of its use: each thread keeps packs of its own on the way into shared memory, which
// needs no barrier and holds more than registers would.

#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {

// Sixteen bytes, or zeros where not `inside`; seen by this thread behind ahead_wait.
__device__ inline void ahead_copy(void* shared, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(from), "r"(inside ? 16 : 0)
               : "memory");
}
// All copies since the last one are a group.
__device__ inline void ahead_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most kLeft groups are under way.
template <int kLeft>
__device__ inline void ahead_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

}  // namespace weft::cuda
