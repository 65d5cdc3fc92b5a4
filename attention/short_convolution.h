#pragma once
// The op short_conv (autograd/ops/short_conv.h) as a part: over the tokens of a layer, wherever the tokens
// before them are.

#include "attention/part.h"

namespace weft {

// x (N, C) -> (N, C).  weight (C, W), its last column for the token itself
Halo short_convolution(const Variable& weight, const Layout& layout);

// The same over one document from its start, term by term, for reference().
Variable naive_short_convolution(const Variable& x, const Variable& weight);

}  // namespace weft
