#pragma once
// Element-by-element copies and sums that change the dtype. Kernels without a gradient, for tensors and the
// tape.

#include "autograd/tensor.h"

namespace weft {

namespace cpu {
void fill(const Tensor& to, double value);
void convert(const Tensor& to, const Tensor& from);     // to = from
void accumulate(const Tensor& to, const Tensor& from);  // to += from, in the wider of the two types
}  // namespace cpu
namespace cuda {
void fill(const Tensor& to, double value);
void convert(const Tensor& to, const Tensor& from);
void accumulate(const Tensor& to, const Tensor& from);
}  // namespace cuda

}  // namespace weft
