#pragma once
// Short causal convolution along the token line, one filter for each channel, as linear recurrences apply to
// their projections (Fu et al., "Hungry hungry hippos", 2023).

#include "autograd/tape.h"

namespace weft {

// y[i, c] = bias[c] + sum over j of weight[c, W-1-j] x[i-j, c],  0 <= j < W and j <= position[i]
//   x (N, C), perhaps a column view; weight (C, W), W from 1 to 8, its last column for the token itself;
//   bias (C) or undefined; position (N) i32, a token's place in its document -> y (N, C)
// So a token never reads another document, as long as a document's tokens are consecutive. before (W-1, C)
// holds the rows before row 0, for a line that continues another; if undefined, they are zeros.
Variable short_conv(const Variable& x, const Variable& weight, const Variable& bias, const Tensor& position,
                    const Variable& before = {});

namespace cpu {
// weight, bias in the accumulator type; bias and before may be undefined, dbefore with it.
void short_conv_forward(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const Tensor& position, const Tensor& before);
// dweight (row blocks, C W), dbias (row blocks, C): partial sums
void short_conv_backward(const Tensor& dx, const Tensor& dbefore, const Tensor& dweight, const Tensor& dbias,
                         const Tensor& x, const Tensor& weight, const Tensor& position, const Tensor& before,
                         const Tensor& dy);
}  // namespace cpu
namespace cuda {
void short_conv_forward(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const Tensor& position, const Tensor& before);
void short_conv_backward(const Tensor& dx, const Tensor& dbefore, const Tensor& dweight, const Tensor& dbias,
                         const Tensor& x, const Tensor& weight, const Tensor& position, const Tensor& before,
                         const Tensor& dy);
}  // namespace cuda

}  // namespace weft
