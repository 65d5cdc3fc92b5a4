#pragma once
// Rotary position embedding (Su et al., "RoFormer", 2021), with feature i paired with feature i + rotated/2
// as Llama does.

#include "autograd/tape.h"

namespace weft {

// The first `rotated` features of each head turn by position * theta^(-2i / rotated), the others stay.
//   x (N, H, D), perhaps a column view; position (N) i32; rotated even, 0 means D -> y (N, H, D)
// Angles are computed in f64, so that a position of a million is as exact as a small one.
Variable rotary(const Variable& x, const Tensor& position, double theta = 10000, int64_t rotated = 0);
// The same for several tensors of the same tokens and one D, in one pass.
std::vector<Variable> rotary(const std::vector<Variable>& x, const Tensor& position, double theta = 10000,
                             int64_t rotated = 0);
// The same written over x, whose variables stand for y from here on. The caller must know that nothing else
// reads x any more, neither now nor in the backward. Gradients are turned back in place too, if nothing else
// holds them.
void rotary_in_place(const std::vector<Variable>& x, const Tensor& position, double theta = 10000,
                     int64_t rotated = 0);

namespace cpu {
// y and x (N, H, D), with any pitch; the same tensor, or disjoint.
struct RotaryPart {
  Tensor y, x;
};
// turn: 1, or -1 for the inverse
void rotary(const std::vector<RotaryPart>& parts, const Tensor& position, double theta, int64_t rotated,
            double turn);
}  // namespace cpu
namespace cuda {
using cpu::RotaryPart;
void rotary(const std::vector<RotaryPart>& parts, const Tensor& position, double theta, int64_t rotated,
            double turn);
}  // namespace cuda

}  // namespace weft
