#pragma once
// Matrix products.

#include "autograd/tape.h"

namespace weft {

struct Transpose {
  bool a = false;
  bool b = false;
};

// c = op(a) op(b), op the identity or the transpose of the last two dimensions.
//   a (..., M, K) or (..., K, M), b (..., K, N) or (..., N, K) -> c (..., M, N)
// The leading dimensions are equal; or b has two dimensions, and the leading dimensions of a count as rows (a
// not transposed). Two-dimensional operands may be column views. Sums are kept in f32 (f64 for f64).
Variable matmul(const Variable& a, const Variable& b, Transpose transpose = {});

// y = x weight^T + bias.  x (..., in), weight (out, in), bias (out) or undefined -> y (..., out)
Variable linear(const Variable& x, const Variable& weight, const Variable& bias = {});

// Rows [begin, end) of a weight, for many calls of linear() with few rows each (Tape::gather).
Variable gathered(const Parameter& weight, int64_t begin, int64_t end);
Variable gathered(const Parameter& weight);

// c = alpha op(a) op(b) + beta c, without a tape, on c's device: batched over leading dimensions; c may be
// wider than a and b (f32 from bf16). Counts its operations.
void gemm(const Tensor& c, const Tensor& a, const Tensor& b, Transpose transpose, double alpha, double beta);

namespace cpu {
// c = alpha op(a) op(b) + beta c, batched over leading dimensions; c may be wider than a and b (f32 from
// bf16).
void gemm(const Tensor& c, const Tensor& a, const Tensor& b, Transpose transpose, double alpha, double beta);
// to = beta to + column sums of g.  g (M, N), to (N)
void sum_rows(const Tensor& to, const Tensor& g, double beta);
void add_row(const Tensor& y, const Tensor& bias);  // y (M, N) += bias (N)
}  // namespace cpu
namespace cuda {
void gemm(const Tensor& c, const Tensor& a, const Tensor& b, Transpose transpose, double alpha, double beta);
void sum_rows(const Tensor& to, const Tensor& g, double beta);
void add_row(const Tensor& y, const Tensor& bias);
}  // namespace cuda

}  // namespace weft
