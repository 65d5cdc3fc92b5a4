#pragma once
// The flag --segments P[:placing[:strategy]] of commands that share tokens among ranks.

#include <string>

#include "distributed/rank_crossing.h"
#include "distributed/segments.h"

namespace weft {

struct SegmentsFlag {
  int ranks = 0;  // 0: not given
  SegmentPlan plan = SegmentPlan::contiguous;
  CrossingStrategy strategy = CrossingStrategy::native;
};

constexpr const char* kSegmentsUnit = "RANKS[:contiguous|zigzag[:native|gather|ring|heads]]";

// value: what was given, or empty. Errors: Exit::usage.
SegmentsFlag parse_segments(const std::string& value);

}  // namespace weft
