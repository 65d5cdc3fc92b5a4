#pragma once
// The arithmetic of a reduction over ranks, in one fixed order.

#include <cstdint>

#include "autograd/dtype.h"
#include "distributed/communicator.h"

namespace weft {

// out[i] = fold over r of parts[r·count + i], along the binary tree ((0+1)+(2+3))+...; bf16 is folded in f32
// and rounded once, i32 sums wrap. out must not overlap parts.
void reduce_over_ranks(void* out, const void* parts, int ranks, int64_t count, Dtype dtype, Reduce op);

}  // namespace weft
