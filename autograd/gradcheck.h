#pragma once
// Gradients against finite differences, in f64 on the CPU: four-point central differences of a loss that is
// the dot product of the outputs with a *random* adjoint, at *random* inputs. A sum for a loss, or ones for
// gains, would hide wrong factors that cancel there.

#include <string>
#include <vector>

#include "autograd/tape.h"

namespace weft {

struct GradcheckResult {
  double error = 0;   // worst |analytic - numeric| over an input, relative to 1 + the norm of its gradient
  std::string worst;  // which input or parameter
};

// f maps the inputs (f64) to one or more outputs. The gradients of every input, and of every parameter of
// `store` if given, are checked at up to `samples` random elements each.
GradcheckResult gradcheck(const Function& f, const std::vector<Tensor>& inputs,
                          ParameterStore* store = nullptr, int samples = 24, uint32_t seed = 1);

// Largest |a - b|; infinity where exactly one is NaN or shapes differ.
double largest_difference(const Tensor& a, const Tensor& b);

// Random f64 tensor, normal with deviation 1, the same for the same seed.
Tensor random_tensor(const Shape& shape, uint32_t seed, Dtype dtype = Dtype::f64, double deviation = 1);

}  // namespace weft
