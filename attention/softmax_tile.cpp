#include "attention/softmax_tile.h"

#include "autograd/ops/instruction_set.h"

namespace weft::cpu {

template <class W>
void softmax_tile(const SoftmaxTile<W>& x) {
#ifdef __x86_64__
  if (has_avx512()) return avx512::softmax_tile(x);
#endif
  base::softmax_tile(x);
}

template <class W>
void softmax_gradient_tile(const SoftmaxGradientTile<W>& x) {
#ifdef __x86_64__
  if (has_avx512()) return avx512::softmax_gradient_tile(x);
#endif
  base::softmax_gradient_tile(x);
}

template void softmax_tile(const SoftmaxTile<float>&);
template void softmax_tile(const SoftmaxTile<double>&);
template void softmax_gradient_tile(const SoftmaxGradientTile<float>&);
template void softmax_gradient_tile(const SoftmaxGradientTile<double>&);

}  // namespace weft::cpu
