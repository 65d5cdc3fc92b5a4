#include "autograd/ops/gemm_kernel.h"

#include <vector>

#include "autograd/ops/instruction_set.h"

namespace weft::cpu {

bool has_avx512() {
#ifdef __x86_64__
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl");
  return has;
#else
  return false;
#endif
}

template <class T, class A, class B>
void multiply(const Product<T, A, B>& product) {
  thread_local std::vector<T> space(kPackSpace);
#ifdef __x86_64__
  if (has_avx512()) return avx512::multiply(product, space.data());
#endif
  base::multiply(product, space.data());
}

template void multiply(const Product<double, double, double>&);
template void multiply(const Product<float, float, float>&);
template void multiply(const Product<float, float, bf16>&);
template void multiply(const Product<float, bf16, float>&);
template void multiply(const Product<float, bf16, bf16>&);

}  // namespace weft::cpu
