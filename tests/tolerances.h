#pragma once
// Tolerances that tests share. None depends on the environment.

#include "autograd/dtype.h"

namespace weft::tolerance {

// Finite differences in f64, relative to 1 + the norm of the gradient.
inline constexpr double kGradcheck = 1e-7;

// Two computations of the same thing in the same dtype, in another order of summation: relative to 1 +
// |value|.
constexpr double of(Dtype dtype) { return dtype == Dtype::f64 ? 1e-10 : dtype == Dtype::f32 ? 2e-5 : 4e-2; }

// Computed in bf16 against f64: the norm of the difference over the norm.
inline constexpr double kBf16Norm = 3e-2;

// The same of kernels of recurrences beside f32, where gates forget within a few tokens. The results' own
// rounding is 1.7e-3 of it.
inline constexpr double kChannelProducts = 2.7e-3;  // decays of channels inside a product of rows
inline constexpr double kChannelSums = 2e-3;        // and outside
inline constexpr double kChannelGate = 6e-4;
inline constexpr double kDeltaRule = 5e-3;

// Sums over positions t of t (q dq - k dk), of which only distances remain, over up to 5,000 tokens: of bf16
// kernels with gradients in f32 beside f32 kernels. With gradients in bf16 1,500 tokens are 1.8e-2 off.
inline constexpr double kPositionSums = 3e-3;

// Attention of bf16 by cuDNN against f64, norms: lse stays in f32; on the way back weights and their
// gradients are rounded to bf16, as ours are.
inline constexpr double kCudnnAttention = 8e-3;
inline constexpr double kCudnnLogSum = 1e-5;

// Two computations that keep 16 bits or more on the way and then round to bf16: few elements go another way.
inline constexpr double kRoundedOnce = 1e-3;

// Large tensors at once beside some rows at a time, a row's norm of the difference over the rows' root mean
// square: products and recurrences of bf16 that are cut otherwise; sums over all rows, rounded to bf16 once
// in all or once a piece; sums in f32 and transforms.
inline constexpr double kLargeRows = 4e-2;
inline constexpr double kLargeSums = 2e-2;
inline constexpr double kLargeF32 = 2e-4;

}  // namespace weft::tolerance
