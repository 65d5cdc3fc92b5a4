#pragma once
// Gates: an elementwise function of some columns of a projection, in one pass each way, where copying the
// columns, changing their type, the function and a factor would take four.

#include "autograd/ops/elementwise_functions.h"
#include "autograd/tape.h"

namespace weft {

// y = factor f(x).  x (N, ...), perhaps a column view -> y (N, ...), dense, in x's dtype or, if wide, in f32
// (f64 for f64). Saved: x.
template <class F>
Variable gate(const Variable& x, bool wide, double factor);

// Decays and strengths are wide: a decay may be so near to 1 that bf16 would round it to 1.
inline Variable log_sigmoid_gate(const Variable& x, double temperature) {
  return gate<LogSigmoid>(x, true, 1 / temperature);
}
inline Variable sigmoid_gate(const Variable& x) { return gate<Sigmoid>(x, true, 1); }
inline Variable softplus_gate(const Variable& x) { return gate<Softplus>(x, true, 1); }
// Not wide: features, and gates of values.
inline Variable silu_gate(const Variable& x) { return gate<Silu>(x, false, 1); }

using GateFunctions = FunctionList<LogSigmoid, Sigmoid, Softplus, Silu>;

namespace cpu {
// y and dy of one dtype, x and dx of one; each with any pitch.
template <class F>
void gate_forward(const Tensor& y, const Tensor& x, double factor);
template <class F>
void gate_backward(const Tensor& dx, const Tensor& x, const Tensor& dy, double factor);
}  // namespace cpu
namespace cuda {
template <class F>
void gate_forward(const Tensor& y, const Tensor& x, double factor);
template <class F>
void gate_backward(const Tensor& dx, const Tensor& x, const Tensor& dy, double factor);
}  // namespace cuda

}  // namespace weft
