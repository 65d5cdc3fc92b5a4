#pragma once
// What kernels of an optimizer read that changes from step to step. It is brought to the device before they
// are launched, so that an update is the same work at every step and can be recorded.

#include <vector>

#include "autograd/tensor.h"

namespace weft {

inline void put_factors(const Tensor& factors, const std::vector<double>& values) {
  factors.copy_from(from_values(factors.shape(), Dtype::f64, values, Device::cpu));
}

}  // namespace weft
