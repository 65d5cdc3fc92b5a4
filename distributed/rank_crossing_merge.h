#pragma once
// How attention that is cut into ranks is put together.

#include <optional>

#include "attention/part.h"
#include "distributed/rank_crossing_plan.h"

namespace weft {

// Of cut documents, the segments of one rank or of all.
Segments cut_segments(const RankPlan& plan, std::optional<int> rank);

// One op: block.x = {q, k, v} of this rank's tokens of cut documents -> {o, lse}. Keys and values travel
// around the ranks, and once more on the way back with their gradients beside them. Partial results and
// travelling gradients are in f32 (f64); kept are the local q, k, v, o and lse alone.
std::vector<Variable> ring_merge(Communicator& ranks, const RankPlan& plan, const Merge& part,
                                 const Block& block);

namespace cpu {
// (o, lse) over some keys becomes that over those of (more_o, more_lse) too, in place: o (N, H, D), lse (N,
// H), all of one dtype; lse is -inf where no key was seen.
void add_partial(const Tensor& o, const Tensor& lse, const Tensor& more_o, const Tensor& more_lse);
}  // namespace cpu
namespace cuda {
void add_partial(const Tensor& o, const Tensor& lse, const Tensor& more_o, const Tensor& more_lse);
}  // namespace cuda

}  // namespace weft
