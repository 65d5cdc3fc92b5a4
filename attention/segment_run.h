#pragma once
// What ops over whole segments share: where segments begin, the buffers that kernels ask for, and the states
// of segments without tokens.

#include <algorithm>
#include <vector>

#include "autograd/layout_bounds.h"
#include "autograd/tape.h"

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

// Element counts, in f32 (f64): kept from forward to backward; scratch of each pass.
struct RunBuffers {
  int64_t kept = 0, forward = 0, backward = 0;
};

// Whether a backward pass may follow.
inline bool followed(const std::vector<Variable>& inputs) {
  return Tape::current() != nullptr &&
         std::any_of(inputs.begin(), inputs.end(), [](const Variable& x) { return x.differentiable(); });
}

// The states after segments of no tokens: those before them.
inline void state_or_zero(const Tensor& to, const Tensor& from) {
  if (from.defined())
    to.copy_from(from);
  else
    to.zero();
}

}  // namespace weft
