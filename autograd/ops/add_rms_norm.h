#pragma once
// What a pre-norm block does between two of its layers: the residual sum and its norm, in one pass.

#include "autograd/tape.h"

namespace weft {

struct SumAndNorm {
  Variable sum, norm;
};

// sum = x + branch, norm = rms_norm(sum, gain, eps): the same bits as the two ops, forward and back.
//   x, branch (..., D) of one dtype; gain (D) or undefined -> (..., D) each
// Saved: the sum, and one number a row.
SumAndNorm add_rms_norm(const Variable& x, const Variable& branch, const Variable& gain = {},
                        double eps = 1e-6);

namespace cpu {
// gain (D) in the accumulator type or undefined; rstd (rows) likewise
void add_rms_norm_forward(const Tensor& sum, const Tensor& y, const Tensor& rstd, const Tensor& x,
                          const Tensor& branch, const Tensor& gain, double eps);
// dx = dsum (may be undefined) + the gradient through the norm. dgain (row blocks, D): partial sums
void add_rms_norm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& sum, const Tensor& rstd,
                           const Tensor& gain, const Tensor& dsum, const Tensor& dy);
}  // namespace cpu
namespace cuda {  // in rms_norm_cuda.cu
void add_rms_norm_forward(const Tensor& sum, const Tensor& y, const Tensor& rstd, const Tensor& x,
                          const Tensor& branch, const Tensor& gain, double eps);
void add_rms_norm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& sum, const Tensor& rstd,
                           const Tensor& gain, const Tensor& dsum, const Tensor& dy);
}  // namespace cuda

}  // namespace weft
