#pragma once
// Ranges of the flat groups of a ParameterStore: what an optimizer owns and acts on. One rank owns them all,
// or, with ZeRO (Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models",
// SC 2020), its part of each.

#include <vector>

#include "autograd/parameter.h"

namespace weft {

// Elements [begin, end) of the buffers of store.groups()[group].
struct Range {
  int group = 0;
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
  bool contains(const Range& r) const { return group == r.group && begin <= r.begin && r.end <= end; }
  bool operator==(const Range&) const = default;
};
using Ranges = std::vector<Range>;

// All trainable groups, whole.
Ranges whole(const ParameterStore& store);

// Part `part` of `parts` nearly equal parts; together they cover whole(store) once. whole_matrices: groups of
// matrices are cut between parameters only, as Muon needs; else anywhere on a cache line. Empty ranges are
// left out.
Ranges partition(const ParameterStore& store, int64_t parts, int64_t part, bool whole_matrices);

// The parameters that a range touches, in order: a checkpoint stores buffers parameter by parameter, so that
// another partition can read them.
struct ParameterPiece {
  const ParameterEntry* entry;
  int64_t begin;   // elements into the parameter
  int64_t count;   // elements
  int64_t offset;  // elements into the range
};
std::vector<ParameterPiece> pieces(const ParameterStore& store, const Range& range);

}  // namespace weft
