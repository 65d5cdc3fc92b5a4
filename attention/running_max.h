#pragma once
// The largest number of each head so far: what exponential features of keys are divided by, since the largest
// of a whole text would look ahead. Where it grows, the state shrinks by the ratio, which is one more decay.

#include "attention/crossing.h"

namespace weft {

// For each token of a block and each head: the largest of x (N, H) over the tokens of its document before it,
// and over those up to it; `least` where there is none. States are in units of it, so gradients of states go
// through it; gradients of outputs, in which it cancels, need not.
struct SoFar {
  Variable before, now;
};
SoFar largest_so_far(const Variable& x, double least, int64_t chunk, const Block& block, Crossing& cross);

}  // namespace weft
