#pragma once
// A root-mean-square norm followed by a gate, as in TransNormerLLM (Qin et al. 2023).

#include "autograd/tape.h"

namespace weft {

// y = x / sqrt(mean(x^2) + eps) * gate, over the last dimension.
//   x, gate (..., D), perhaps column views -> y (..., D), dense
// Saved: both inputs, and one number for each row.
Variable gated_rms_norm(const Variable& x, const Variable& gate, double eps = 1e-6);

namespace cpu {
// rstd (rows) in the accumulator type; the others may have a pitch
void gated_rms_norm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x, const Tensor& gate,
                            double eps);
void gated_rms_norm_backward(const Tensor& dx, const Tensor& dgate, const Tensor& x, const Tensor& gate,
                             const Tensor& rstd, const Tensor& dy);
}  // namespace cpu
namespace cuda {
void gated_rms_norm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x, const Tensor& gate,
                            double eps);
void gated_rms_norm_backward(const Tensor& dx, const Tensor& dgate, const Tensor& x, const Tensor& gate,
                             const Tensor& rstd, const Tensor& dy);
}  // namespace cuda

}  // namespace weft
