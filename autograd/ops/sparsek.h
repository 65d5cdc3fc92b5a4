#pragma once
// SPARSEK, a differentiable top-k (Lou et al. 2024, "Sparser is Faster and Less is More: Efficient Sparse
// Attention for Long-Range Transformers", arXiv 2406.16747): the point of the capped simplex that is nearest
// to the scores,
//   sparsek(z, k) = argmin |p - z|^2 over 0 <= p_j <= 1, sum p = k     = clip(z - tau, 0, 1) for one tau.
// For k = 1 it is sparsemax (Martins & Astudillo 2016). With I the set of elements strictly between 0 and 1,
// its Jacobian is 1 - 11^T / |I| on I and 0 elsewhere: dz_j = dp_j - mean of dp over I.

#include "autograd/tape.h"

namespace weft {

// z (..., M) -> p (..., M), k >= 1. An element of -infinity does not count: its p is 0. A row with k or fewer
// other elements has p = 1 on all of them, whatever their scores, and no gradient.
Variable sparsek(const Variable& z, int64_t k);

namespace cpu {
// p in the accumulator type of z's
void sparsek_forward(const Tensor& p, const Tensor& z, int64_t k);
void sparsek_backward(const Tensor& dz, const Tensor& p, const Tensor& dp);
}  // namespace cpu
namespace cuda {
void sparsek_forward(const Tensor& p, const Tensor& z, int64_t k);
void sparsek_backward(const Tensor& dz, const Tensor& p, const Tensor& dp);
}  // namespace cuda

}  // namespace weft
