#pragma once
// Bulk copies between memory and shared memory, which a unit of its own carries out (Hopper), and the
// barriers that tell their end. Elsewhere nothing of this is compiled into anything.

#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {

// Whether `kernel` has them: what was compiled for older GPUs runs on this one without.
template <auto kernel>
bool bulk_copies_serve() {
  cudaFuncAttributes of_kernel{};
  CUDA_CHECK(cudaFuncGetAttributes(&of_kernel, kernel));
  return of_kernel.ptxVersion >= 90;
}

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
  // Arrives, and lets the phase wait for so many bytes of copies.
  __device__ void expect(int bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&state_)),
                 "r"(bytes)
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

// What this thread wrote into shared memory is there for the copies of whoever learns of it.
__device__ inline void show_to_bulk_copies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// From shared memory to memory; addresses and bytes are multiples of 16, 0 bytes a store of nothing.
__device__ inline void bulk_store(void* to, const void* from, int bytes) {
#if __CUDA_ARCH__ >= 900
  if (bytes > 0)
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
                 "r"(shared_address(from)), "r"(bytes)
                 : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}
// Until all but the last `pending` stores that this thread asked for have read shared memory.
template <int pending>
__device__ void wait_until_stores_read() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
#endif
}

}  // namespace weft::cuda
