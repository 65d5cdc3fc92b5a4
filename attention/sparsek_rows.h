#pragma once
// Index lists of SPARSEK's selections, made where the scores are. They carry no gradient.

#include "autograd/tensor.h"

namespace weft {

// Rows of the pairs of run r, r * pairs ..., that the first `kept` indices of (R, C, ...) i32 name among
// {kept, `gap` scores without a pair, the others}; none of them names a score without one. -> (R C, kept) i32
Tensor pair_rows(const Tensor& indices, int64_t kept, int64_t gap, int64_t pairs);

// Of scores (R, P) the first `count` of each row of order (R, at least count) i32, as rows of the flattened
// scores; -1 where the score is -infinity. -> (R count) i32
Tensor best_rows(const Tensor& scores, const Tensor& order, int64_t count);

// i32 as numbers of a floating dtype.
Tensor numbers_of(const Tensor& x, Dtype dtype);

namespace cpu {
void numbers_of(const Tensor& y, const Tensor& x);
void pair_rows(const Tensor& rows, const Tensor& indices, int64_t gap, int64_t pairs);  // rows (R, C, kept)
void best_rows(const Tensor& rows, const Tensor& scores, const Tensor& order);          // rows (R, count)
}  // namespace cpu
namespace cuda {
void numbers_of(const Tensor& y, const Tensor& x);
void pair_rows(const Tensor& rows, const Tensor& indices, int64_t gap, int64_t pairs);
void best_rows(const Tensor& rows, const Tensor& scores, const Tensor& order);
}  // namespace cuda

}  // namespace weft
