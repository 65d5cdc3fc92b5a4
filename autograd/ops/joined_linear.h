#pragma once
// The products of several weights with the same rows, as one.

#include "autograd/tape.h"

namespace weft {

// y = x [W_1; W_2; ...]^T: their outputs as columns, side by side.
//   x (N, in), each weight (out_i, in), of the store -> y (N, sum of out_i)
// Weights declared one after another lie side by side in their store where each fills whole cache lines: then
// they are one matrix, and so are their gradients. Others are put together first.
Variable joined_linear(const Variable& x, const ParameterStore& store, const std::vector<Parameter>& weights);

}  // namespace weft
