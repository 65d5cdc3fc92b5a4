#pragma once
// What scans over chunks of heads have in common: their inputs widened and turned so that a chunk of a head
// is a matrix. M chunks of C tokens, H heads.

#include <cmath>

#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/triangle.h"

namespace weft {

// (M, C, H, D) -> (M, H, C, D), in f32 (f64): a chunk's arithmetic is wide.
inline Variable by_head(const Variable& x) { return permute(cast(x, wide_of(x.dtype())), {0, 2, 1, 3}); }

// Back, in the dtype of an output.
inline Variable by_token(const Variable& x, Dtype dtype) { return cast(permute(x, {0, 2, 1, 3}), dtype); }

// One number a head and token: (M, C, H) -> (M, H, C)
inline Variable number_by_head(const Variable& x) { return permute(cast(x, wide_of(x.dtype())), {0, 2, 1}); }

// The running sum of log decays in each chunk: (M, C, H) -> (M, H, C)
inline Variable running_decay(const Variable& g) { return cumulative_sum(number_by_head(g), 2); }

inline Variable as_column(const Variable& x) { return reshape(x, {x.dim(0), x.dim(1), x.dim(2), 1}); }
inline Variable as_row(const Variable& x) { return reshape(x, {x.dim(0), x.dim(1), 1, x.dim(2)}); }

// e^{b_i - b_j} for j <= i + diagonal, 0 elsewhere: (M, H, C) -> (M, H, C, C)
inline Variable decay_between(const Variable& b, int64_t diagonal) {
  return exp(lower_triangle(subtract(as_column(b), as_row(b)), diagonal, -INFINITY));
}

}  // namespace weft
