#pragma once
// Positions of linear attention by learned rotations (LRPE; Qin et al., "Linearized relative positional
// encoding", 2023), in the form of TransNormerLLM: features whose products depend on the distance alone.

#include "autograd/tape.h"

namespace weft {

// [x cos(t theta), x sin(t theta)] for each x; all share the angles.
//   each x (N, H, D), perhaps a column view; theta (H, D) and position t (N), or (N, 1), both in f32 (f64 of
//   f64) -> each (N, H, 2 D), dense
// Angles are computed in f64: a position of a million is as exact as a small one. A feature is rounded once.
// Positions have a gradient, because they are part of the state of a text that continues.
std::vector<Variable> lrpe_features(const std::vector<Variable>& x, const Variable& theta,
                                    const Variable& position);

namespace cpu {
// x (N, H, D) and y (N, H, 2 D), tokens with any pitch. In the backward both are gradients.
struct LrpePart {
  Tensor x, y;
};
void lrpe_forward(const std::vector<LrpePart>& parts, const Tensor& theta, const Tensor& position);
// Writes dx of each part from dy; dtheta (row blocks, H D): partial sums over tokens and parts.
void lrpe_backward(const std::vector<LrpePart>& gradients, const std::vector<Tensor>& x, const Tensor& dtheta,
                   const Tensor& theta, const Tensor& position);
}  // namespace cpu
namespace cuda {
using cpu::LrpePart;
void lrpe_forward(const std::vector<LrpePart>& parts, const Tensor& theta, const Tensor& position);
void lrpe_backward(const std::vector<LrpePart>& gradients, const std::vector<Tensor>& x, const Tensor& dtheta,
                   const Tensor& theta, const Tensor& position);
}  // namespace cuda

}  // namespace weft
