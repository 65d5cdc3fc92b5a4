#pragma once
// Bulk copies into shared memory, which a unit of its own carries out (Hopper), and the barriers that tell
// their end. Elsewhere nothing of this is compiled into anything.

#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// A barrier in shared memory that ends one phase after another: `arrivals`, and all bytes expected, end one.
class BulkBarrier {
 public:
  // By one thread; all others may use it behind the next barrier of the block.
  __device__ void init(int arrivals) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&state_)), "r"(arrivals));
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  }
  __device__ void arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&state_)) : "memory");
#endif
  }
  // Of phases 0, 1, 2 ... each `phase` is waited for in turn.
  __device__ void wait(int phase) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(shared_address(&state_)),
        "r"(phase & 1)
        : "memory");
#endif
  }
  // From memory to shared memory; addresses and bytes are multiples of 16, 0 bytes are no copy.
  __device__ void load(void* to, const void* from, int bytes) {
#if __CUDA_ARCH__ >= 900
    if (bytes == 0) return;
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            shared_address(to)),
        "l"(from), "r"(bytes), "r"(shared_address(&state_))
        : "memory");
#endif
  }

 private:
  uint64_t state_;
};

}  // namespace weft::cuda
