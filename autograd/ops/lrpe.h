#pragma once
// Positions of linear attention by learned rotations (LRPE; Qin et al., "Linearized relative positional
// encoding", 2023), in the form of TransNormerLLM: features whose products depend on the distance alone.

#include <type_traits>

#include "autograd/tape.h"

namespace weft {

// [x cos(t theta), x sin(t theta)] for each x; all share the angles.
//   each x (N, H, D), perhaps a column view; theta (H, D) and position t (N), or (N, 1), both in f32 (f64 of
//   f64) -> each (N, H, 2 D), dense, in x's dtype or, with `wide`, in theta's
// Angles are computed in f64: a position of a million is as exact as a small one. A feature is rounded once,
// to x's dtype, also where it is held in a wider one: then its gradient is wide. Theta's is
//   sum over t of t (dy_sin y_cos - dy_cos y_sin)
// of which only what depends on distances remains when queries and keys have been added. It remains to the
// last bit if y are the features that the products saw, so rounded ones, and dy is not yet rounded.
// Positions have a gradient, because they are part of the state of a text that continues.
std::vector<Variable> lrpe_features(const std::vector<Variable>& x, const Variable& theta,
                                    const Variable& position, bool wide = false);

namespace cpu {
// x (N, H, D) and y (N, H, 2 D), tokens with any pitch, y in x's dtype or theta's. In the backward both are
// gradients.
struct LrpePart {
  Tensor x, y;
};
// Calls f.operator()<T, Y>() with the types of x and of y.
template <class F>
void with_lrpe_types(Dtype x, Dtype y, F f) {
  with_float(x, [&]<class T>() {
    if constexpr (!std::is_same_v<T, Acc<T>>)
      if (y != x) return f.template operator()<T, Acc<T>>();
    f.template operator()<T, T>();
  });
}
void lrpe_forward(const std::vector<LrpePart>& parts, const Tensor& theta, const Tensor& position);
// Writes dx of each part from dy; dtheta (row blocks, H D): partial sums over tokens and parts.
void lrpe_backward(const std::vector<LrpePart>& gradients, const std::vector<Tensor>& x, const Tensor& dtheta,
                   const Tensor& theta, const Tensor& position);
}  // namespace cpu
namespace cuda {
using cpu::LrpePart, cpu::with_lrpe_types;
void lrpe_forward(const std::vector<LrpePart>& parts, const Tensor& theta, const Tensor& position);
void lrpe_backward(const std::vector<LrpePart>& gradients, const std::vector<Tensor>& x, const Tensor& dtheta,
                   const Tensor& theta, const Tensor& position);
}  // namespace cuda

}  // namespace weft
