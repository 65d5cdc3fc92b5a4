#pragma once
// Attention of each query over a list of rows of its own, each with a gate.

#include <vector>

#include "autograd/tape.h"

namespace weft {

struct SelectedOptions {
  double scale = 1;       // of q k^T
  bool gate_keys = true;  // gates scale keys too, not values alone
  int64_t groups = 1;     // queries and rows come in this many equal runs; queries look at their own run
};

// With j over the rows that query i names, except those with gate 0:
//   s_ij = scale gate_ij q_i . k_j (without the gate if it scales values alone)
//   o_i = sum_j softmax_j(s_ij) gate_ij v_j      lse_i = log sum_j e^(s_ij)      (0, -infinity: empty list)
//   q (N, Dk), k (M, Dk), v (M, Dv), gate (N, K), all of one dtype, f32 or f64;
//   index (N, K) i32, rows of k
// Returns {o (N, Dv), lse (N)}. Time and memory are N K, whatever M.
std::vector<Variable> selected_attention(const Variable& q, const Variable& k, const Variable& v,
                                         const Variable& gate, const Tensor& index,
                                         const SelectedOptions& options);

namespace cpu {
void selected_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                      const Tensor& gate, const Tensor& index, const SelectedOptions& options);
// All d are overwritten.
void selected_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& d_gate,
                       const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                       const Tensor& index, const Tensor& o, const Tensor& lse, const Tensor& d_o,
                       const Tensor& d_lse, const SelectedOptions& options);
}  // namespace cpu
namespace cuda {
void selected_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                      const Tensor& gate, const Tensor& index, const SelectedOptions& options);
void selected_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& d_gate,
                       const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                       const Tensor& index, const Tensor& o, const Tensor& lse, const Tensor& d_o,
                       const Tensor& d_lse, const SelectedOptions& options);
}  // namespace cuda

}  // namespace weft
