// For x86-64 processors with AVX-512; attention/CMakeLists.txt sets the flags.

#ifdef __x86_64__
#define WEFT_INSTRUCTIONS avx512
#include "attention/softmax_tile_cpu.cpp"  // NOLINT(bugprone-suspicious-include)
#endif
