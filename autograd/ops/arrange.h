#pragma once
// Ops that rearrange elements.

#include "autograd/tape.h"

namespace weft {

Variable reshape(const Variable& x, const Shape& shape);  // a view
// y's axis i is x's axis order[i].
Variable permute(const Variable& x, const std::vector<int>& order);
// Elements [begin, end) of an axis. Along the leading axis a view.
Variable slice(const Variable& x, int axis, int64_t begin, int64_t end);
// Parts one after another along an axis.
Variable concatenate(const std::vector<Variable>& parts, int axis);
// Consecutive columns of x (N, C) as views of these shapes, (N, ...) each; or of these widths. Their
// gradients also lie side by side, in that of x.
std::vector<Variable> split_columns(const Variable& x, const std::vector<Shape>& shapes);
std::vector<Variable> split_columns(const Variable& x, const std::vector<int64_t>& widths);
// The rows of x (N, ...) in this many equal parts, as views. Their gradients also lie in that of x.
std::vector<Variable> split_rows(const Variable& x, int64_t count);

// Rows of x by index; index -1 gives a row of `fill`.  x (N, ...), index (M) i32 -> (M, ...)
Variable gather_rows(const Variable& x, const Tensor& index, double fill = 0);

namespace cpu {
void permute(const Tensor& y, const Tensor& x, const std::vector<int>& order);
// Copies the block of `count` elements of `axis` that starts at from_begin in `from` to to_begin in `to`.
void copy_block(const Tensor& to, int64_t to_begin, const Tensor& from, int64_t from_begin, int axis,
                int64_t count);
// The same, added.
void add_block(const Tensor& to, int64_t to_begin, const Tensor& from, int64_t from_begin, int axis,
               int64_t count);
void gather_rows(const Tensor& y, const Tensor& x, const Tensor& index, double fill);
// to[index[i]] += from[i], in order of i; -1 is dropped.
void scatter_rows(const Tensor& to, const Tensor& from, const Tensor& index);
}  // namespace cpu
namespace cuda {
void permute(const Tensor& y, const Tensor& x, const std::vector<int>& order);
void copy_block(const Tensor& to, int64_t to_begin, const Tensor& from, int64_t from_begin, int axis,
                int64_t count);
void add_block(const Tensor& to, int64_t to_begin, const Tensor& from, int64_t from_begin, int axis,
               int64_t count);
void gather_rows(const Tensor& y, const Tensor& x, const Tensor& index, double fill);
void scatter_rows(const Tensor& to, const Tensor& from, const Tensor& index);
}  // namespace cuda

}  // namespace weft
