#pragma once
// Long causal convolutions, one filter a channel, by fast Fourier transforms: n log n for a document of n
// tokens (Cooley & Tukey 1965).

#include "autograd/tape.h"

namespace weft {

// y[t, c] = sum over s <= t in t's document of kernel[c, t - s] x[s, c]
//   x (T, C); kernel (C, L) in x's dtype, L at least the longest document; first (G+1) i32, which the host
//   reads, so keep it on the CPU: document g is rows first[g] .. first[g+1] -> y (T, C)
// Computed in f32 (f64 for f64), with zeros after each document so that its end does not wrap around to its
// start. Saved: x and kernel.
Variable causal_convolution(const Variable& x, const Variable& kernel, const Tensor& first);

namespace cpu {
void causal_convolution_forward(const Tensor& y, const Tensor& x, const Tensor& kernel, const Tensor& first);
void causal_convolution_backward(const Tensor& dx, const Tensor& dkernel, const Tensor& x,
                                 const Tensor& kernel, const Tensor& first, const Tensor& dy);
}  // namespace cpu
namespace cuda {
void causal_convolution_forward(const Tensor& y, const Tensor& x, const Tensor& kernel, const Tensor& first);
void causal_convolution_backward(const Tensor& dx, const Tensor& dkernel, const Tensor& x,
                                 const Tensor& kernel, const Tensor& first, const Tensor& dy);
}  // namespace cuda

}  // namespace weft
