#pragma once
// Root-mean-square normalisation (Zhang and Sennrich, "Root mean square layer normalization", 2019).

#include "autograd/tape.h"

namespace weft {

// y = x / sqrt(mean(x^2) + eps) * gain, over the last dimension.
//   x (..., D), perhaps a column view; gain (D) or undefined -> y (..., D)
// Saved: x, and one number for each row.
Variable rms_norm(const Variable& x, const Variable& gain = {}, double eps = 1e-6);

namespace cpu {
// gain (D) in the accumulator type or undefined; rstd (rows) likewise
void rms_norm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x, const Tensor& gain, double eps);
// dgain (row blocks, D): partial sums
void rms_norm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& x, const Tensor& rstd,
                       const Tensor& gain, const Tensor& dy);
}  // namespace cpu
namespace cuda {
void rms_norm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x, const Tensor& gain, double eps);
void rms_norm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& x, const Tensor& rstd,
                       const Tensor& gain, const Tensor& dy);
}  // namespace cuda

}  // namespace weft
