#pragma once
// Positions of linear attention by learned rotations (LRPE; Qin et al., "Linearized relative positional
// encoding", 2023), in the form of TransNormerLLM: features whose products depend on the distance alone.

#include "autograd/tape.h"

namespace weft {

// [x cos(t theta), x sin(t theta)] of each x, which share their angles.
//   each x (N, H, D), perhaps a column view; theta (H, D) and position t (N), or (N, 1), both in f32 (f64 of
//   f64) -> each (N, H, 2 D), dense
// Angles are taken in f64: a position of a million is as exact as a small one. A feature is rounded once.
// Positions have a gradient: they are a state where a text goes on.
std::vector<Variable> lrpe_features(const std::vector<Variable>& x, const Variable& theta,
                                    const Variable& position);

namespace cpu {
// x (N, H, D) and y (N, H, 2 D), of tokens with any pitch. On the way back both are gradients.
struct LrpePart {
  Tensor x, y;
};
void lrpe_forward(const std::vector<LrpePart>& parts, const Tensor& theta, const Tensor& position);
// Writes the parts' dx of dy; dtheta (row blocks, H D): partial sums over tokens and parts. x: as it was.
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
