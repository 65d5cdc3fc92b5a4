#pragma once
// Initial values of weights.

#include <cmath>

#include "autograd/parameter.h"

namespace weft {

// Outputs of about the size of the inputs, a little smaller: deviation sqrt(2 / (5 fan_in)) (Nguyen & Salazar
// 2019).
inline Initializer projection_init(int64_t fan_in) {
  return Initializer::normal(std::sqrt(0.4 / static_cast<double>(fan_in)));
}

// Writes into the residual stream: the same over sqrt(2 depth), so that the sum over all blocks keeps its
// size (Radford et al. 2019).
inline Initializer residual_init(int64_t fan_in, int64_t depth) {
  return Initializer::normal(std::sqrt(0.4 / static_cast<double>(fan_in * 2 * depth)));
}

}  // namespace weft
