#pragma once
// The first-order recurrence S_i = a_i S_{i-1} + s_i along the leading dimension, restarting at each group.

#include "autograd/tape.h"

namespace weft {

// a (M, A...), s (M, A..., R...): a covers the leading dimensions of s's rows, or has extent 1 at its end (a
// (M, H, 1, 1) and s (M, H, K, V)). first (G+1) i32 on a's device: group g is rows first[g] .. first[g+1].
// Returns the states *before* each row and at the end of each group, starting from {1, 0}:
//   {product of a before (M), S before (M), product of a (G), S at the end (G)}
std::vector<Variable> decay_scan(const Variable& a, const Variable& s, const Tensor& first);

namespace cpu {
void decay_scan_forward(const Tensor& a_before, const Tensor& s_before, const Tensor& a_total,
                        const Tensor& s_total, const Tensor& a, const Tensor& s, const Tensor& first);
void decay_scan_backward(const Tensor& da, const Tensor& ds, const Tensor& a, const Tensor& a_before,
                         const Tensor& s_before, const Tensor& first, const Tensor& g_a_before,
                         const Tensor& g_s_before, const Tensor& g_a_total, const Tensor& g_s_total);
}  // namespace cpu
namespace cuda {
void decay_scan_forward(const Tensor& a_before, const Tensor& s_before, const Tensor& a_total,
                        const Tensor& s_total, const Tensor& a, const Tensor& s, const Tensor& first);
void decay_scan_backward(const Tensor& da, const Tensor& ds, const Tensor& a, const Tensor& a_before,
                         const Tensor& s_before, const Tensor& first, const Tensor& g_a_before,
                         const Tensor& g_s_before, const Tensor& g_a_total, const Tensor& g_s_total);
}  // namespace cuda

}  // namespace weft
