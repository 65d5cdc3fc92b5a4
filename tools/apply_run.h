#pragma once
// The computation of `weft apply`, in each of its modes.

#include <string>
#include <utility>
#include <vector>

#include "tools/apply_task.h"

namespace weft {

struct ApplyOutcome {
  Tensor y;                    // (N, ...)
  std::vector<Tensor> states;  // (B, ...), as signature.states
  std::vector<std::pair<std::string, Tensor>> losses;
  std::vector<Tensor> d_inputs, d_given;  // as task.inputs, task.given; undefined where there is none
  std::map<std::string, Tensor> parameters, d_parameters;  // all of them
};

// The naive definition. It starts from nothing and leaves no state, so states come from the mechanism's own
// recurrence in chunks of one token; with given states that recurrence is the definition.
ApplyOutcome apply_reference(const ApplyTask& task);
// All tokens at once; chunk 0: the mechanism's own.
ApplyOutcome apply_full(const ApplyTask& task, int64_t chunk);
// `prefill` tokens of each row at once, then one by one. Exit::recipe with dy, or where tokens see later
// ones.
ApplyOutcome apply_decode(const ApplyTask& task, int64_t prefill, int64_t chunk);
// Over ranks as threads.
ApplyOutcome apply_segments(const ApplyTask& task, int ranks, SegmentPlan plan, CrossingStrategy strategy,
                            int64_t chunk);

}  // namespace weft
