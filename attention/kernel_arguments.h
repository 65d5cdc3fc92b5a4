#pragma once
// How tensors reach the launchers of attention/kernels. Included only if WEFT_CUDA.

#include "attention/kernels/linear_attention.h"
#include "attention/segment_run.h"

namespace weft {

inline cuda::Rows rows_of(const Tensor& x) { return {x.raw(), x.pitch()}; }
inline cuda::MutableRows written(const Tensor& x) { return {x.raw(), x.pitch()}; }
inline float* floats(const Tensor& x) { return x.defined() ? static_cast<float*>(x.raw()) : nullptr; }

}  // namespace weft
