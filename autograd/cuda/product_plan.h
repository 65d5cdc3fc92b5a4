#pragma once
// How cuBLASLt multiplies matrices of given shapes, found once for each and kept. Large products are timed:
// the library's first choice is up to a quarter slower than its best. What was found is also kept on disk, by
// GPU and library version, so that later runs choose the same and give the same bits.

#include <cublasLt.h>

#include "autograd/ops/matmul.h"

namespace weft::cuda {

struct ProductPlan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm = {};
};

// Of c = alpha op(a) op(b) + beta c, batched over leading dimensions; c of the operands' type or the wider
// one. overwritten: beta is 0, so c may hold what a search multiplies; else that takes as much memory again.
const ProductPlan& plan_product(const Tensor& c, const Tensor& a, const Tensor& b, Transpose transpose,
                                bool overwritten);

// alpha, beta: double for f64, else float.
void run_product(const ProductPlan& plan, const Tensor& c, const Tensor& a, const Tensor& b,
                 const void* alpha, const void* beta);

}  // namespace weft::cuda
