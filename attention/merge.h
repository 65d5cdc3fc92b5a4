#pragma once
// The Merge part as one op of the tape, over the given keys.

#include "attention/part.h"

namespace weft {

// The heads of each query that are on, (N, H); undefined: all.
Tensor active_of(const Block& query);

// `pairs` of a query and a key meet (attention/seen_pairs.h): for counting the work.
// query.x[0] = q, keys.x[1], keys.x[2] = k, v; query.x[3], if there, = active. Returns {o, lse}, both
// differentiable.
std::vector<Variable> merge(const Merge& part, const Block& query, const Block& keys, double pairs);

}  // namespace weft
