#pragma once
// One token line. Activations are (N, C) and (N, H, D): all tokens of this rank, segment after segment, never
// padded. A batch of B equal sequences is B documents. What an op needs to know of a token travels beside it:
// its position in its document and which document that is.

#include <cstdint>
#include <utility>
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

// The segments of a layout, which count who asks. What the host decides by them holds for these documents
// alone, and work that did so cannot be recorded for others.
class LayoutSegments {
 public:
  LayoutSegments() = default;
  LayoutSegments(Segments segments) : segments_(std::move(segments)) {}
  const Segments& read() const {
    ++reads_;
    return segments_;
  }
  // For checks and for counting operations, which change nothing of what a device is asked to do.
  const Segments& unread() const { return segments_; }

  operator const Segments&() const { return read(); }
  auto begin() const { return read().begin(); }
  auto end() const { return read().end(); }
  size_t size() const { return read().size(); }
  bool empty() const { return read().empty(); }
  const Segment& operator[](size_t i) const { return read()[i]; }
  void push_back(const Segment& s) { segments_.push_back(s); }
  friend bool operator==(const LayoutSegments& a, const Segments& b) { return a.segments_ == b; }

  static int64_t reads() { return reads_; }  // of all layouts, by this thread

 private:
  Segments segments_;
  static thread_local int64_t reads_;
};

// As many documents, the longest of so many tokens, as kernels are launched for.
struct DocumentBounds {
  int32_t documents = 0;
  int64_t longest = 0;
};

struct Layout {
  LayoutSegments segments;
  Tensor position, document;  // (N) i32 each
  // Set where layouts with as many documents, or nearly, are to be the same work (rounded_bounds): what is
  // launched then depends on these alone. Documents that are not there have no token.
  DocumentBounds bounds = {};
  Tensor offsets = {};  // (bounds.documents + 1) i32: where each begins, behind the last one the end

  int64_t tokens() const { return position.defined() ? position.dim(0) : 0; }
};

// The layout's bounds; where it has none, those of its segments.
DocumentBounds bounds_of(const Layout& layout);
// Equal documents as they are; others rounded up to powers of two, so that many ways to pack have one bound.
DocumentBounds rounded_bounds(const Segments& segments);

Layout make_layout(Segments segments, Device device = default_device());
// Whole documents of these lengths, numbered from 0; empty ones hold no segment.
Layout whole_documents(const std::vector<int64_t>& lengths, Device device = default_device());

}  // namespace weft
