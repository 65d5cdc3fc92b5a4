#pragma once
// What causal sums inside a chunk are made of.

#include "autograd/tape.h"

namespace weft {

// x where column <= row + diagonal in the last two dimensions, `fill` elsewhere.
Variable lower_triangle(const Variable& x, int64_t diagonal = 0, double fill = 0);

// y[i] = x[0] + ... + x[i] along an axis, summed in order in f32 (f64).
Variable cumulative_sum(const Variable& x, int axis);

namespace cpu {
void lower_triangle(const Tensor& y, const Tensor& x, int64_t diagonal, double fill);
void cumulative_sum(const Tensor& y, const Tensor& x, int axis, bool reverse);
}  // namespace cpu
namespace cuda {
void lower_triangle(const Tensor& y, const Tensor& x, int64_t diagonal, double fill);
void cumulative_sum(const Tensor& y, const Tensor& x, int axis, bool reverse);
}  // namespace cuda

}  // namespace weft
