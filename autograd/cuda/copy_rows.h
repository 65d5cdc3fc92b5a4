#pragma once
// Copies of views on the GPU, by a kernel: the driver's own, of rows with a pitch, are slower.

#include "autograd/tensor.h"

namespace weft::cuda {

// to = from, of one dtype and shape, each with a pitch of its own.
void copy_rows(const Tensor& to, const Tensor& from);

}  // namespace weft::cuda
