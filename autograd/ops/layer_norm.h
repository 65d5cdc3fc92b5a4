#pragma once
// Layer normalisation (Ba, Kiros and Hinton, 2016).

#include "autograd/tape.h"

namespace weft {

// y = (x - mean(x)) / sqrt(variance(x) + eps) * gain + bias, over the last dimension.
//   x (..., D), perhaps a column view; gain, bias (D), each may be undefined -> y (..., D)
// The variance is the mean squared deviation. Saved: x, and two numbers for each row.
Variable layer_norm(const Variable& x, const Variable& gain = {}, const Variable& bias = {},
                    double eps = 1e-5);

namespace cpu {
// gain, bias (D) in the accumulator type or undefined; statistics (rows, 2): mean, 1 / deviation
void layer_norm_forward(const Tensor& y, const Tensor& statistics, const Tensor& x, const Tensor& gain,
                        const Tensor& bias, double eps);
// dgain, dbias (row blocks, D): partial sums
void layer_norm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& dbias, const Tensor& x,
                         const Tensor& statistics, const Tensor& gain, const Tensor& dy);
}  // namespace cpu
namespace cuda {
void layer_norm_forward(const Tensor& y, const Tensor& statistics, const Tensor& x, const Tensor& gain,
                        const Tensor& bias, double eps);
void layer_norm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& dbias, const Tensor& x,
                         const Tensor& statistics, const Tensor& gain, const Tensor& dy);
}  // namespace cuda

}  // namespace weft
