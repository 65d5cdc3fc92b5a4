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

// The same of every prefix of a row that starts with `given` >= k elements, in time k an element:
//   x (R, given + C) -> (R, C, k) i32, those of x[0] ... x[given + c], as top_k orders them. No NaN.
Tensor running_top_k(const Tensor& x, int64_t given, int64_t k);

// 1 where an index of the row names the element, 0 elsewhere.  indices (..., k) i32, none twice in a row ->
// (..., width)
Tensor marks(const Tensor& indices, int64_t width, Dtype dtype);

namespace cpu {
void gather_last_forward(const Tensor& y, const Tensor& x, const Tensor& indices);
void gather_last_backward(const Tensor& dx, const Tensor& indices, const Tensor& dy);
void top_k_indices(const Tensor& indices, const Tensor& x);
void running_top_k(const Tensor& indices, const Tensor& x, int64_t given);
}  // namespace cpu
namespace cuda {
void gather_last_forward(const Tensor& y, const Tensor& x, const Tensor& indices);
void gather_last_backward(const Tensor& dx, const Tensor& indices, const Tensor& dy);
void top_k_indices(const Tensor& indices, const Tensor& x);
void running_top_k(const Tensor& indices, const Tensor& x, int64_t given);
}  // namespace cuda

}  // namespace weft
