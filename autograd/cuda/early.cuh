#pragma once
// For kernels that start early in a recording (replay.h).

#include "autograd/cuda/kernel.cuh"
#include "autograd/cuda/replay.h"

namespace weft::cuda {

// Until then only what no recording writes may be read, and nothing written. At once where nothing runs.
__device__ inline void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

template <class Kernel, class... Arguments>
void launch_early(Kernel kernel, dim3 blocks, int threads, size_t bytes, const Arguments&... arguments) {
  if (early_starts()) starts_early(reinterpret_cast<const void*>(kernel));
  kernel<<<blocks, threads, bytes, stream()>>>(arguments...);
}

}  // namespace weft::cuda
