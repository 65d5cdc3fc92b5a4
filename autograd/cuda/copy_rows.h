#pragma once
// Copies of views on the GPU: the driver moves rows with a pitch at a third of the memory's speed.

#include "autograd/tensor.h"

namespace weft::cuda {

// to = from, of one dtype and shape, each with a pitch of its own.
void copy_rows(const Tensor& to, const Tensor& from);

}  // namespace weft::cuda
