#pragma once
// Masters of f64 are computed with as they are, those of f32 as they are or as a copy in bf16.

#include "autograd/tensor.h"

namespace weft {

// f<T, Low>(), T the type of a master and Low that of its working copy.
template <class F>
void with_weights(const Tensor& master, const Tensor& working, F f) {
  if (master.dtype() == Dtype::f64)
    f.template operator()<double, double>();
  else if (working.dtype() == Dtype::f32)
    f.template operator()<float, float>();
  else
    f.template operator()<float, bf16>();
}

}  // namespace weft
