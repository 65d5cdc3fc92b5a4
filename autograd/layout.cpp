#include "autograd/layout.h"

namespace weft {

Layout make_layout(Segments segments, Device device) {
  std::vector<int32_t> position, document;
  int64_t tokens = 0;
  for (const Segment& s : segments) {
    CHECK(0 <= s.begin && s.begin < s.end, "layout: segment [", s.begin, ", ", s.end, ") of document ",
          s.document);
    CHECK(s.end <= INT32_MAX && (tokens += s.size()) <= INT32_MAX, "layout: segment [", s.begin, ", ", s.end,
          ") of document ", s.document, ": tokens of a text, and of a rank, are numbered in 32 bits");
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
