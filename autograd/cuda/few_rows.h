#pragma once
// c = a b^T for up to 16 rows of a, as in decoding: what counts is to read b at the speed of the memory.

#include "autograd/ops/few_rows.h"

namespace weft::cuda {

// Whether few_rows() takes c = a b^T: bf16 in packs of 16 bytes; with a norm, rows of up to 2048 that one
// block can hold.
bool few_rows_serves(const Tensor& a, const Tensor& b, const Around& around = {});
// c (M, N) or, with swiglu, (M, N / 2), bf16 or f32 = alpha a b^T + beta c, with what stands around it; alpha
// and beta are 1 and 0 with any of that.
void few_rows(const Tensor& c, const Tensor& a, const Tensor& b, double alpha, double beta,
              const Around& around = {});

}  // namespace weft::cuda
