#pragma once
// Sums, means and maxima over one dimension. f32 and bf16 are summed in f64, in index order.

#include "autograd/tape.h"

namespace weft {

// x (..., n, ...) -> (..., ...), or (..., 1, ...) if the dimension is kept. Negative axes count from the end.
Variable sum(const Variable& x, int axis, bool keep = false);
// n > 0
Variable mean(const Variable& x, int axis, bool keep = false);
// n > 0. The gradient goes to the first of equal maxima; if a row has a NaN, that is its maximum.
Variable max(const Variable& x, int axis, bool keep = false);

namespace cpu {
// All as (outer, n, inner); y (outer, inner)
void reduce_sum(const Tensor& y, const Tensor& x, double factor);
void reduce_sum_backward(const Tensor& dx, const Tensor& dy, double factor);
void reduce_max(const Tensor& y, const Tensor& index, const Tensor& x);  // index i32
void reduce_max_backward(const Tensor& dx, const Tensor& index, const Tensor& dy);
}  // namespace cpu
namespace cuda {
void reduce_sum(const Tensor& y, const Tensor& x, double factor);
void reduce_sum_backward(const Tensor& dx, const Tensor& dy, double factor);
void reduce_max(const Tensor& y, const Tensor& index, const Tensor& x);
void reduce_max_backward(const Tensor& dx, const Tensor& index, const Tensor& dy);
}  // namespace cuda

}  // namespace weft
