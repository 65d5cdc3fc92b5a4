#pragma once
// Building blocks of causal sums inside a chunk.

#include "autograd/tape.h"

namespace weft {

// x where column <= row + diagonal in the last two dimensions, `fill` elsewhere.
Variable lower_triangle(const Variable& x, int64_t diagonal = 0, double fill = 0);

// y[i] = x[0] + ... + x[i] along an axis, summed in order in f32 (f64).
Variable cumulative_sum(const Variable& x, int axis);

// y = (1 + L)^-1 x by forward substitution, L the part of a below its diagonal; the rest of a is not read.
//   a (..., C, C), x (..., C, D) -> y (..., C, D)
Variable solve_unit_lower(const Variable& a, const Variable& x);

namespace cpu {
void lower_triangle(const Tensor& y, const Tensor& x, int64_t diagonal, double fill);
void cumulative_sum(const Tensor& y, const Tensor& x, int axis, bool reverse);
// transposed: y = (1 + L)^-T x
void solve_unit_lower(const Tensor& y, const Tensor& a, const Tensor& x, bool transposed);
}  // namespace cpu
namespace cuda {
void lower_triangle(const Tensor& y, const Tensor& x, int64_t diagonal, double fill);
void cumulative_sum(const Tensor& y, const Tensor& x, int axis, bool reverse);
// transposed: y = (1 + L)^-T x
void solve_unit_lower(const Tensor& y, const Tensor& a, const Tensor& x, bool transposed);
}  // namespace cuda

}  // namespace weft
