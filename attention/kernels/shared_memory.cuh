#pragma once
// More dynamic shared memory than the 48 KiB that a kernel may have unasked.

#include "attention/kernels/sweep.h"

namespace weft::cuda {

// For all launches of `kernel`. The driver keeps it, and asking costs the host a good part of a launch: so at
// the first one only. what: names the kernel in an error.
template <auto kernel, int bytes>
void allow_shared(const char* what) {
  static const bool allowed = [what] {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), what);
    return true;
  }();
  static_cast<void>(allowed);
}

}  // namespace weft::cuda
