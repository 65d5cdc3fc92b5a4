#pragma once
// The largest elements of each row, and elements of each row by their index.

#include "autograd/tape.h"

namespace weft {

// y[..., j] = x[..., indices[..., j]].  x (..., M), indices (..., k) i32, repeats allowed -> y (..., k)
Variable gather_last(const Variable& x, const Tensor& indices);

struct TopK {
  Variable values;  // (..., k), largest first, with a gradient
  Tensor indices;   // (..., k) i32
};
// 0 <= k <= M. Of equal elements the one of lower index comes first; a NaN counts as larger than anything.
TopK top_k(const Variable& x, int64_t k);

// Two running lists, which the last C elements of a row enter one by one; what falls out of the first list
// enters the second. x (R, k + rest + C) -> (R, C, k + rest) i32: after each element, the best k of the first
// k elements and the new ones so far, followed by the best `rest` of all others so far, each in the order of
// top_k. Time k + rest for each element. No NaN.
Tensor running_top_k(const Tensor& x, int64_t k, int64_t rest);

// 1 where an index of the row names the element, 0 elsewhere.  indices (..., k) i32, none twice in a row ->
// (..., width)
Tensor marks(const Tensor& indices, int64_t width, Dtype dtype);

namespace cpu {
void gather_last_forward(const Tensor& y, const Tensor& x, const Tensor& indices);
void gather_last_backward(const Tensor& dx, const Tensor& indices, const Tensor& dy);
void top_k_indices(const Tensor& indices, const Tensor& x);
void running_top_k(const Tensor& indices, const Tensor& x, int64_t k);
}  // namespace cpu
namespace cuda {
void gather_last_forward(const Tensor& y, const Tensor& x, const Tensor& indices);
void gather_last_backward(const Tensor& dx, const Tensor& indices, const Tensor& dy);
void top_k_indices(const Tensor& indices, const Tensor& x);
void running_top_k(const Tensor& indices, const Tensor& x, int64_t k);
}  // namespace cuda

}  // namespace weft
