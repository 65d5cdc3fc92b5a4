#pragma once
// The norm of the whole gradient, summed in f64 in an order that depends on sizes alone.

#include <string>

#include "optim/partition.h"

namespace weft {

struct GradientNorm {
  double value = 0;        // L2, over all trainable parameters; not finite where a gradient is not
  std::string non_finite;  // the first parameter, as declared, whose gradient is not finite; else empty
};
GradientNorm gradient_norm(const ParameterStore& store);

// For ranks that own ranges: the sum of squares of their gradients, to be added over ranks.
double squared_gradient_norm(const ParameterStore& store, const Ranges& ranges);
std::string first_non_finite_gradient(const ParameterStore& store);

// The first parameter, as declared, whose master is not finite; else empty.
std::string first_non_finite_weight(const ParameterStore& store);

// x (n), f32 or f64. 0 on a device without values.
double sum_of_squares(const Tensor& x);

namespace cpu {
void sum_of_squares(const Tensor& to, const Tensor& x);  // to (1) f64
}  // namespace cpu
namespace cuda {
void sum_of_squares(const Tensor& to, const Tensor& x);
}  // namespace cuda

}  // namespace weft
