#pragma once
// Rotary position embedding (Su et al., "RoFormer", 2021), with feature i paired with feature i + rotated/2
// as Llama does.

#include "autograd/tape.h"

namespace weft {

// The first `rotated` features of each head turn by position * theta^(-2i / rotated), the others stay.
//   x (N, H, D), perhaps a column view; position (N) i32; rotated even, 0 means D -> y (N, H, D)
// Angles are taken in f64, so that a position of a million is as exact as a small one.
Variable rotary(const Variable& x, const Tensor& position, double theta = 10000, int64_t rotated = 0);

namespace cpu {
// turn: 1, or -1 for the inverse
void rotary(const Tensor& y, const Tensor& x, const Tensor& position, double theta, int64_t rotated,
            double turn);
}  // namespace cpu
namespace cuda {
void rotary(const Tensor& y, const Tensor& x, const Tensor& position, double theta, int64_t rotated,
            double turn);
}  // namespace cuda

}  // namespace weft
