#pragma once
// Elementwise functions of one tensor, and of two with broadcasting: shapes are aligned at their last
// dimension, and an extent of 1 (or a missing leading dimension) stretches.

#include "autograd/ops/elementwise_functions.h"
#include "autograd/tape.h"

namespace weft {

template <class F>
Variable unary(const Variable& x);
template <class F>
Variable binary(const Variable& a, const Variable& b);

inline Variable negate(const Variable& x) { return unary<Negate>(x); }
inline Variable exp(const Variable& x) { return unary<Exp>(x); }
inline Variable log(const Variable& x) { return unary<Log>(x); }
inline Variable sqrt(const Variable& x) { return unary<Sqrt>(x); }
inline Variable reciprocal(const Variable& x) { return unary<Reciprocal>(x); }
inline Variable square(const Variable& x) { return unary<Square>(x); }
inline Variable sin(const Variable& x) { return unary<Sin>(x); }
inline Variable cos(const Variable& x) { return unary<Cos>(x); }
inline Variable sigmoid(const Variable& x) { return unary<Sigmoid>(x); }
inline Variable tanh(const Variable& x) { return unary<Tanh>(x); }
inline Variable relu(const Variable& x) { return unary<Relu>(x); }
inline Variable abs(const Variable& x) { return unary<Abs>(x); }
inline Variable silu(const Variable& x) { return unary<Silu>(x); }
inline Variable gelu(const Variable& x) { return unary<Gelu>(x); }
inline Variable normal_cdf(const Variable& x) { return unary<NormalCdf>(x); }
inline Variable gelu_derivative(const Variable& x) { return unary<GeluDerivative>(x); }
inline Variable softplus(const Variable& x) { return unary<Softplus>(x); }
inline Variable log_sigmoid(const Variable& x) { return unary<LogSigmoid>(x); }
inline Variable elu_plus_one(const Variable& x) { return unary<EluPlusOne>(x); }

inline Variable add(const Variable& a, const Variable& b) { return binary<Add>(a, b); }
inline Variable subtract(const Variable& a, const Variable& b) { return binary<Subtract>(a, b); }
inline Variable multiply(const Variable& a, const Variable& b) { return binary<Multiply>(a, b); }
inline Variable divide(const Variable& a, const Variable& b) { return binary<Divide>(a, b); }
inline Variable maximum(const Variable& a, const Variable& b) { return binary<Maximum>(a, b); }
inline Variable minimum(const Variable& a, const Variable& b) { return binary<Minimum>(a, b); }

// alpha x + beta
Variable scale(const Variable& x, double alpha, double beta = 0);
// Another dtype; the gradient comes back in the old one.
Variable cast(const Variable& x, Dtype dtype);

namespace cpu {
template <class F>
void unary_forward(const Tensor& y, const Tensor& x);
template <class F>
void unary_backward(const Tensor& dx, const Tensor& x, const Tensor& y, const Tensor& dy);
template <class F>
void binary_forward(const Tensor& y, const Tensor& a, const Tensor& b);
// d = dy * dF/da (first) or dF/db, in y's shape
template <class F>
void binary_backward(const Tensor& d, const Tensor& a, const Tensor& b, const Tensor& dy, bool first);
void affine(const Tensor& y, const Tensor& x, double alpha, double beta);
// to = sum of from over the dimensions in which to has extent 1 or none
void sum_to(const Tensor& to, const Tensor& from);
}  // namespace cpu
namespace cuda {
template <class F>
void unary_forward(const Tensor& y, const Tensor& x);
template <class F>
void unary_backward(const Tensor& dx, const Tensor& x, const Tensor& y, const Tensor& dy);
template <class F>
void binary_forward(const Tensor& y, const Tensor& a, const Tensor& b);
template <class F>
void binary_backward(const Tensor& d, const Tensor& a, const Tensor& b, const Tensor& dy, bool first);
void affine(const Tensor& y, const Tensor& x, double alpha, double beta);
void sum_to(const Tensor& to, const Tensor& from);
}  // namespace cuda

}  // namespace weft
