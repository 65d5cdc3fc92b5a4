#pragma once
// The products of several weights with the same rows, as one product.

#include "autograd/tape.h"

namespace weft {

// y = x [W_1; W_2; ...]^T: the outputs of all weights as columns, side by side.
//   x (N, in), each weight (out_i, in), of the store -> y (N, sum of out_i)
// Weights that are declared one after another, and fill whole cache lines, are adjacent in their store: then
// they are one matrix, and so are their gradients. Other weights are concatenated first.
Variable joined_linear(const Variable& x, const ParameterStore& store, const std::vector<Parameter>& weights);

}  // namespace weft
