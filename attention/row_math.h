#pragma once
// Row operations of the CPU kernels of attention to chosen rows, of memories that learn (memory_ops.h), and
// of delta rules.

#include <cstdint>

namespace weft::cpu {

template <class T>
__attribute__((always_inline)) inline T dot(const T* a, const T* b, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

template <class T>
__attribute__((always_inline)) inline void add_scaled(T* to, T factor, const T* from, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] += factor * from[i];
}

// Memory into the caches while something else computes, where it lies too far apart for what the processor
// fetches by itself. Inlined because gcc drops calls to a function that only prefetches.
__attribute__((always_inline)) inline void prefetch(const void* from, int64_t bytes) {
  const char* const first = static_cast<const char*>(from);
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(first + line, 0, 2);
}

}  // namespace weft::cpu
