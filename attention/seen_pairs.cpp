#include "attention/seen_pairs.h"

#include <algorithm>

namespace weft {
namespace {

struct Range {
  int64_t begin, end;
};

// Of queries and keys the pairs with key <= query + shift.
double pairs_up_to(Range queries, Range keys, int64_t shift) {
  // Queries see 0, 1, 2, ... keys from the first on, and never more than all.
  const auto triangle = [](int64_t n) {
    return n > 0 ? 0.5 * static_cast<double>(n) * static_cast<double>(n + 1) : 0.0;
  };
  const auto from = [&](int64_t key) {
    return triangle(queries.end + shift - key) - triangle(queries.begin + shift - key);
  };
  return from(keys.begin) - from(keys.end);
}

double seen_pairs(const AttentionOptions& options, Range queries, Range keys) {
  if (queries.begin >= queries.end || keys.begin >= keys.end) return 0;
  const int64_t all = std::max(queries.end, keys.end) + 1;  // farther than any two are apart
  const int64_t window = options.window > 0 ? options.window : all;
  return pairs_up_to(queries, keys, options.causal ? 0 : window - 1) - pairs_up_to(queries, keys, -window);
}

double pairs_in_blocks(const AttentionOptions& options, Range queries, Range keys) {
  if (options.block == 0) return seen_pairs(options, queries, keys);
  double pairs = 0;
  for (int64_t begin = queries.begin / options.block * options.block; begin < queries.end;
       begin += options.block) {
    const auto inside = [&](Range r) {
      return Range{std::max(r.begin, begin), std::min(r.end, begin + options.block)};
    };
    pairs += seen_pairs(options, inside(queries), inside(keys));
  }
  return pairs;
}

Segments by_document(Segments segments) {
  std::stable_sort(segments.begin(), segments.end(),
                   [](const Segment& a, const Segment& b) { return a.document < b.document; });
  return segments;
}

}  // namespace

double seen_pairs(const AttentionOptions& options, const Segments& queries, const Segments& keys) {
  const Segments sorted = by_document(keys);
  double pairs = 0;
  auto first = sorted.begin();  // of the document in hand
  for (const Segment& q : by_document(queries)) {
    while (first != sorted.end() && first->document < q.document) ++first;
    for (auto k = first; k != sorted.end() && k->document == q.document; ++k)
      pairs += pairs_in_blocks(options, {q.begin, q.end}, {k->begin, k->end});
  }
  return pairs;
}

double seen_pairs(const AttentionOptions& options, const Segments& queries) {
  double pairs = 0;
  for (const Segment& q : queries) pairs += pairs_in_blocks(options, {q.begin, q.end}, {0, q.end});
  return pairs;
}

double attention_operations(const Merge& part, double pairs, const Tensor& q, const Tensor& v,
                            bool backward) {
  const auto key = static_cast<double>(q.dim(2)), value = static_cast<double>(v.dim(2));
  const double of_a_pair = 2 * (backward ? 3 * key + 2 * value : key + value);
  return pairs * part.active_share * static_cast<double>(q.dim(1)) * of_a_pair;
}

}  // namespace weft
