#pragma once
// Rotary position embedding (Su et al., "RoFormer", 2021), with feature i paired with feature i + rotated/2
// as Llama does.

#include "autograd/tape.h"

namespace weft {

// The first `rotated` features of each head turn by position * theta^(-2i / rotated), the others stay.
//   x (N, H, D), perhaps a column view; position (N) i32; rotated even, 0 means D -> y (N, H, D)
// Angles are taken in f64, so that a position of a million is as exact as a small one.
Variable rotary(const Variable& x, const Tensor& position, double theta = 10000, int64_t rotated = 0);
// The same of several tensors of the same tokens in one pass: those of `turning`, of one D, turn; those of
// `staying` are copied, so that a packed projection comes apart here.
std::vector<Variable> rotary(const std::vector<Variable>& turning, const std::vector<Variable>& staying,
                             const Tensor& position, double theta = 10000, int64_t rotated = 0);

namespace cpu {
// y and x (N, H, D), with any pitch; `turns`: the first `rotated` features of x turn, else y = x.
struct RotaryPart {
  Tensor y, x;
  bool turns;
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
