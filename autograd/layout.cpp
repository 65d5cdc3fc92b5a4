#include "autograd/layout.h"

#include <algorithm>
#include <bit>

namespace weft {
namespace {

constexpr int64_t kShortest = 128;  // bounds of the longest document begin here: a tile of attention

DocumentBounds exact_bounds(const Segments& segments) {
  DocumentBounds b{static_cast<int32_t>(segments.size()), 0};
  for (const Segment& s : segments) b.longest = std::max(b.longest, s.size());
  return b;
}

template <class T>
T power_of_two(T x) {
  return static_cast<T>(std::bit_ceil(static_cast<std::make_unsigned_t<T>>(x)));
}

}  // namespace

thread_local int64_t LayoutSegments::reads_ = 0;

DocumentBounds bounds_of(const Layout& layout) {
  return layout.bounds.documents > 0 ? layout.bounds : exact_bounds(layout.segments);
}

DocumentBounds rounded_bounds(const Segments& segments) {
  const DocumentBounds exact = exact_bounds(segments);
  if (std::all_of(segments.begin(), segments.end(),
                  [&](const Segment& s) { return s.size() == exact.longest; }))
    return exact;
  return {power_of_two(exact.documents), power_of_two(std::max(exact.longest, kShortest))};
}

Layout make_layout(Segments segments, Device device) {
  std::vector<int32_t> position, document;
  for (const Segment& s : segments) {
    CHECK(0 <= s.begin && s.begin < s.end, "layout: segment [", s.begin, ", ", s.end, ") of document ",
          s.document);
    for (int64_t t = s.begin; t < s.end; ++t) {
      position.push_back(static_cast<int32_t>(t));
      document.push_back(s.document);
    }
  }
  return {std::move(segments), from_ints(position, device), from_ints(document, device)};
}

Layout whole_documents(const std::vector<int64_t>& lengths, Device device) {
  Segments segments;
  for (size_t d = 0; d < lengths.size(); ++d)
    if (lengths[d] > 0) segments.push_back({static_cast<int>(d), 0, lengths[d]});
  return make_layout(std::move(segments), device);
}

}  // namespace weft
