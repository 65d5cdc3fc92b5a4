#pragma once
// Softmax and log-sum-exp over the last dimension.

#include "autograd/tape.h"

namespace weft {

// y_j = e^(x_j - m) / sum_l e^(x_l - m), m the largest x.  x (..., M) -> y (..., M)
// -infinity masks an element; a row with all elements masked gives zeros, and no gradient.
Variable softmax(const Variable& x);

// y = log sum_j e^x_j.  x (..., M) -> y (...); -infinity for a row with all elements masked.
Variable log_sum_exp(const Variable& x);

namespace cpu {
void softmax_forward(const Tensor& y, const Tensor& x);
void softmax_backward(const Tensor& dx, const Tensor& y, const Tensor& dy);
void log_sum_exp_forward(const Tensor& y, const Tensor& x);  // y in the accumulator type
void log_sum_exp_backward(const Tensor& dx, const Tensor& x, const Tensor& y, const Tensor& dy);
}  // namespace cpu
namespace cuda {
void softmax_forward(const Tensor& y, const Tensor& x);
void softmax_backward(const Tensor& dx, const Tensor& y, const Tensor& dy);
void log_sum_exp_forward(const Tensor& y, const Tensor& x);
void log_sum_exp_backward(const Tensor& dx, const Tensor& x, const Tensor& y, const Tensor& dy);
}  // namespace cuda

}  // namespace weft
