#pragma once
// One token line. Activations are (N, C) and (N, H, D): all tokens of this rank, segment after segment, never
// padded. A batch of B equal sequences is B documents. What an op needs to know of a token travels beside it:
// its position in its document and which document that is.

#include <cstdint>
#include <vector>

#include "autograd/tensor.h"

namespace weft {

// Tokens [begin, end) of a document, counted from its start; never empty.
struct Segment {
  int document;
  int64_t begin, end;

  int64_t size() const { return end - begin; }
  friend bool operator==(const Segment&, const Segment&) = default;
};
using Segments = std::vector<Segment>;  // of one rank, in order; may be empty

struct Layout {
  Segments segments;
  Tensor position, document;  // (N) i32 each

  int64_t tokens() const { return position.defined() ? position.dim(0) : 0; }
};

Layout make_layout(Segments segments, Device device = default_device());
// Whole documents of these lengths, numbered from 0; empty ones hold no segment.
Layout whole_documents(const std::vector<int64_t>& lengths, Device device = default_device());

}  // namespace weft
