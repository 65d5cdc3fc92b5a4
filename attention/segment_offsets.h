#pragma once
// Segments of a layout as kernels are told of them: where they begin, and what of those without tokens.

#include <vector>

#include "autograd/layout_bounds.h"

namespace weft {

// (bounds_of(layout).documents + 1) i32: where the segments begin among `tokens` tokens, and the end of the
// last.
inline Tensor segment_offsets(const Layout& layout, int64_t tokens, Device device) {
  if (const Tensor known = offsets_of(layout); known.defined()) {
    CHECK(layout.tokens() == tokens, "attention: ", tokens, " tokens, a layout of ", layout.tokens());
    return known;
  }
  // Layer after layer asks for the same ones, and a copy to a GPU costs the host 2 us.
  thread_local Segments last;
  thread_local Tensor offsets;
  thread_local int32_t end = 0;
  if (!offsets.defined() || offsets.device() != device || last != layout.segments) {
    std::vector<int32_t> ends{0};
    for (const Segment& s : layout.segments) ends.push_back(ends.back() + static_cast<int32_t>(s.size()));
    last = layout.segments;
    end = ends.back();
    offsets = from_ints(ends, device);
  }
  CHECK(end == tokens, "attention: ", tokens, " tokens in segments of ", end);
  return offsets;
}

// The states behind segments of no tokens: those before them.
inline void state_or_zero(const Tensor& to, const Tensor& from) {
  if (from.defined())
    to.copy_from(from);
  else
    to.zero();
}

}  // namespace weft
