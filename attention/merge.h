#pragma once
// The Merge part as one op of the tape, over whatever keys are at hand.

#include "attention/part.h"

namespace weft {

// query.x[0] = q, keys.x[1], keys.x[2] = k, v. Returns {o, lse}, both differentiable.
std::vector<Variable> merge(const Merge& part, const Block& query, const Block& keys);

}  // namespace weft
