#include "autograd/layout_bounds.h"

#include <algorithm>
#include <bit>

namespace weft {
namespace {

thread_local const BoundsScope* innermost = nullptr;

constexpr int64_t kShortest = 128;  // bounds of the longest document begin here: a tile of attention

DocumentBounds exact_bounds(const Segments& segments) {
  DocumentBounds b{static_cast<int32_t>(segments.size()), 0};
  for (const Segment& s : segments) b.longest = std::max(b.longest, s.size());
  return b;
}

}  // namespace

DocumentBounds rounded_bounds(const Segments& segments) {
  const DocumentBounds exact = exact_bounds(segments);
  const auto equal = [&](const Segment& s) { return s.size() == exact.longest; };
  if (std::all_of(segments.begin(), segments.end(), equal)) return exact;
  return {static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(exact.documents))),
          static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max(exact.longest, kShortest))))};
}

BoundsScope::BoundsScope(const Layout& layout, const DocumentBounds& bounds, const Tensor& offsets)
    : position_(layout.position), bounds_(bounds), offsets_(offsets), previous_(innermost) {
  innermost = this;
}
BoundsScope::~BoundsScope() { innermost = previous_; }

const BoundsScope* BoundsScope::of(const Layout& layout) {
  if (innermost == nullptr || !layout.position.defined()) return nullptr;
  const Tensor& own = innermost->position_;
  return own.buffer() == layout.position.buffer() && own.raw() == layout.position.raw() ? innermost : nullptr;
}

DocumentBounds bounds_of(const Layout& layout) {
  const BoundsScope* const scope = BoundsScope::of(layout);
  return scope == nullptr ? exact_bounds(layout.segments) : scope->bounds_;
}

Tensor offsets_of(const Layout& layout) {
  const BoundsScope* const scope = BoundsScope::of(layout);
  return scope == nullptr ? Tensor() : scope->offsets_;
}

}  // namespace weft
