#include "optim/partition.h"

#include <algorithm>

namespace weft {
namespace {

// Where part `part` of a group begins.
int64_t border(const ParameterGroup& group, int64_t parts, int64_t part, bool whole_parameters) {
  constexpr int64_t kLine = 16;
  const int64_t n = group.master.numel();
  if (part == parts) return n;
  if (!whole_parameters) return n * part / parts / kLine * kLine;
  // A parameter belongs to the part in which its middle lies.
  for (const ParameterEntry* e : group.entries)
    if ((2 * e->offset + e->master.numel()) * parts >= 2 * n * part) return part == 0 ? 0 : e->offset;
  return n;
}

}  // namespace

Ranges whole(const ParameterStore& store) { return partition(store, 1, 0, false); }

Ranges partition(const ParameterStore& store, int64_t parts, int64_t part, bool whole_matrices) {
  CHECK(part >= 0 && part < parts, "partition: part ", part, " of ", parts);
  Ranges ranges;
  for (size_t i = 0; i < store.groups().size(); ++i) {
    const ParameterGroup& group = store.groups()[i];
    if (!group.trainable) continue;
    const bool keep_whole = whole_matrices && group.kind == ParameterKind::matrix;
    const Range range{static_cast<int>(i), border(group, parts, part, keep_whole),
                      border(group, parts, part + 1, keep_whole)};
    if (range.size() > 0) ranges.push_back(range);
  }
  return ranges;
}

std::vector<ParameterPiece> pieces(const ParameterStore& store, const Range& range) {
  std::vector<ParameterPiece> found;
  for (const ParameterEntry* e : store.groups()[static_cast<size_t>(range.group)].entries) {
    const int64_t begin = std::max(range.begin, e->offset);
    const int64_t end = std::min(range.end, e->offset + e->master.numel());
    if (begin < end) found.push_back({e, begin - e->offset, end - begin, begin - range.begin});
  }
  return found;
}

}  // namespace weft
