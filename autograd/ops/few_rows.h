#pragma once
// The matrix products of a decoding step, each with the ops before and after it: on a GPU one kernel instead
// of three, because a launch costs more than the work on a few rows.

#include "autograd/tape.h"

namespace weft {

// The ops around y = x weight^T, in their order.
struct Around {
  bool norm = false;      // x is rms_norm(x, gain, eps) first
  int64_t norm_size = 0;  // > 0: each head of this size is normed by itself
  Tensor gain = {};       // (C), or of a head, or undefined
  double eps = 0;         // of the norm
  bool swiglu = false;    // then y becomes swiglu(y): the first half of weight's rows are the gates
  Tensor residual = {};   // last, y becomes residual + y
  bool wide = false;      // y is in the accumulator's type; without swiglu and residual
};

// x (M, C), weight (N, C) of one dtype -> y (M, N), or (M, N / 2) with swiglu; residual is like y. Without
// a tape. Equal, except for the order of sums, to the separate ops, each of which rounds to x's dtype. Where
// few_rows_fused() is true, the bits of a row depend on no other row.
Tensor few_rows_linear(const Tensor& x, const Tensor& weight, const Around& around);

// Whether this is one kernel: no tape, and up to 16 rows of bf16 on a GPU.
bool few_rows_fused(const Tensor& x, const Tensor& weight, const Around& around);

}  // namespace weft
