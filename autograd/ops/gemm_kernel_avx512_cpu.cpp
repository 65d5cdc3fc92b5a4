// For x86-64 processors with AVX-512; autograd/CMakeLists.txt sets the flags.

#ifdef __x86_64__
#define WEFT_INSTRUCTIONS avx512
#include "autograd/ops/gemm_kernel_cpu.cpp"  // NOLINT(bugprone-suspicious-include)
#endif
