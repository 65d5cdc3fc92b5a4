#pragma once
// The products of a decoding step, with what stands before and behind each: on a GPU one kernel instead of
// three, since a kernel costs a step more than the few rows it works on.

#include "autograd/tape.h"

namespace weft {

// Around y = x weight^T, from before it to behind it.
struct Around {
  bool norm = false;      // x is rms_norm(x, gain, eps) first
  int64_t norm_size = 0;  // or that of heads of this size, each by itself
  Tensor gain = {};       // (C), or of a head, or undefined
  double eps = 0;         // of the norm
  bool swiglu = false;    // y is swiglu(y) then: weight's first half of rows are the gates
  Tensor residual = {};   // y is residual + y at last
  bool wide = false;      // y is in the accumulator's type; without swiglu and residual
};

// x (M, C), weight (N, C) of one dtype -> y (M, N), or (M, N / 2) with swiglu, as residual is. Without a
// tape. Equal to the ops by themselves, each of which rounds to x's dtype, but for the order of sums; the
// bits of a row depend on no other row where few_rows_fused() says yes.
Tensor few_rows_linear(const Tensor& x, const Tensor& weight, const Around& around);

// Whether that is one kernel: no tape, and up to 16 rows of bf16 on a GPU.
bool few_rows_fused(const Tensor& x, const Tensor& weight, const Around& around);

}  // namespace weft
