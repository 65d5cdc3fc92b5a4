#pragma once
// The coefficients of a damped moving average's recurrence from its learned parameters (ema.h), elementwise:
//
//   in = p beta        out = gamma / sqrt(N)        decay = 1 - p sigmoid(delta)        p = sigmoid(alpha)
//
// One kernel each way: the tensors are so small that each launch costs a hundredth of the average itself.

#include "autograd/tape.h"

namespace weft {

struct EmaCoefficients {
  Variable in, out, decay;
};

// All (C, N), f32 or f64.
EmaCoefficients ema_coefficients(const Variable& alpha, const Variable& delta, const Variable& beta,
                                 const Variable& gamma);

namespace cpu {
// of: alpha, delta, beta, gamma; to: in, out, decay; scale: 1 / sqrt(N).
void ema_coefficients_forward(const Tensor (&to)[3], const Tensor (&of)[4], double scale);
// Undefined targets are not computed.
void ema_coefficients_backward(const Into (&to)[4], const Tensor (&of)[4], const Tensor (&d)[3],
                               double scale);
}  // namespace cpu
namespace cuda {
void ema_coefficients_forward(const Tensor (&to)[3], const Tensor (&of)[4], double scale);
void ema_coefficients_backward(const Into (&to)[4], const Tensor (&of)[4], const Tensor (&d)[3],
                               double scale);
}  // namespace cuda

}  // namespace weft
