#pragma once
// Two partial results of softmax attention as one (README.md, "Merging partial attention"), as an op.

#include <vector>

#include "autograd/tape.h"

namespace weft {

// {o, lse} over the keys of both.  o (N, H, D) each, lse (N, H) each in the accumulator type; -infinity: no
// key
std::vector<Variable> merge_partials(const Variable& o1, const Variable& lse1, const Variable& o2,
                                     const Variable& lse2);

namespace cpu {
void merge_partials(const Tensor& o, const Tensor& lse, const Tensor& o1, const Tensor& lse1,
                    const Tensor& o2, const Tensor& lse2);
void merge_partials_backward(const Tensor& d1, const Tensor& dlse1, const Tensor& d2, const Tensor& dlse2,
                             const Tensor& o1, const Tensor& lse1, const Tensor& o2, const Tensor& lse2,
                             const Tensor& d_o, const Tensor& d_lse);
}  // namespace cpu
namespace cuda {
void merge_partials(const Tensor& o, const Tensor& lse, const Tensor& o1, const Tensor& lse1,
                    const Tensor& o2, const Tensor& lse2);
void merge_partials_backward(const Tensor& d1, const Tensor& dlse1, const Tensor& d2, const Tensor& dlse2,
                             const Tensor& o1, const Tensor& lse1, const Tensor& o2, const Tensor& lse2,
                             const Tensor& d_o, const Tensor& d_lse);
}  // namespace cuda

}  // namespace weft
