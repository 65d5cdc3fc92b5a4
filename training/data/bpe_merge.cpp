#include "training/data/bpe_merge.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <queue>

namespace weft {
namespace {

constexpr size_t short_word = 48;  // symbols; above, the heap is faster

}  // namespace

MergeTable::MergeTable(std::span<const std::pair<int32_t, int32_t>> pairs, std::span<const int32_t> results) {
  slots_.assign(std::bit_ceil(2 * pairs.size() + 2), {empty, {no_merge, -1}});
  mask_ = slots_.size() - 1;
  for (size_t i = 0; i < pairs.size(); ++i) {
    const uint64_t key = key_of(pairs[i].first, pairs[i].second);
    size_t slot = slot_of(key);
    while (slots_[slot].key != empty && slots_[slot].key != key) slot = (slot + 1) & mask_;
    slots_[slot] = {key, {static_cast<uint32_t>(i), results[i]}};
  }
}

void MergeTable::apply(std::vector<int32_t>& symbols) const {
  if (symbols.size() < 2) return;
  if (symbols.size() <= short_word)
    apply_short(symbols);
  else
    apply_long(symbols);
}

void MergeTable::apply_short(std::vector<int32_t>& symbols) const {
  size_t n = symbols.size();
  Merge pairs[short_word];  // pairs[i] joins symbols i and i + 1
  for (size_t i = 0; i + 1 < n; ++i) pairs[i] = find(symbols[i], symbols[i + 1]);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i)
      if (pairs[i].rank < pairs[best].rank) best = i;
    if (pairs[best].rank == no_merge) break;
    symbols[best] = pairs[best].id;
    std::copy(symbols.begin() + best + 2, symbols.begin() + n, symbols.begin() + best + 1);
    if (best + 2 < n) std::copy(pairs + best + 1, pairs + n - 1, pairs + best);
    --n;
    if (best > 0) pairs[best - 1] = find(symbols[best - 1], symbols[best]);
    if (best + 1 < n) pairs[best] = find(symbols[best], symbols[best + 1]);
  }
  symbols.resize(n);
}

void MergeTable::apply_long(std::vector<int32_t>& symbols) const {
  // A chain of the symbols that are left. A heap entry is stale when its symbol's pair no longer has its
  // rank.
  struct Link {
    uint32_t previous, next;
    Merge pair;
  };
  constexpr uint32_t none = UINT32_MAX;
  const auto n = static_cast<uint32_t>(symbols.size());
  std::vector<Link> links(n);
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> heap;  // rank, then position
  const auto update = [&](uint32_t at) {
    Link& link = links[at];
    link.pair = link.next == none ? Merge{no_merge, -1} : find(symbols[at], symbols[link.next]);
    if (link.pair.rank != no_merge) heap.push(static_cast<uint64_t>(link.pair.rank) << 32 | at);
  };
  for (uint32_t i = 0; i < n; ++i)
    links[i] = {i == 0 ? none : i - 1, i + 1 == n ? none : i + 1, {no_merge, -1}};
  for (uint32_t i = 0; i < n; ++i) update(i);
  while (!heap.empty()) {
    const auto rank = static_cast<uint32_t>(heap.top() >> 32);
    const auto at = static_cast<uint32_t>(heap.top());
    heap.pop();
    Link& link = links[at];
    if (link.pair.rank != rank) continue;
    const uint32_t joined = link.next;
    symbols[at] = link.pair.id;
    link.next = links[joined].next;
    if (link.next != none) links[link.next].previous = at;
    links[joined].pair = {no_merge, -1};
    update(at);
    if (link.previous != none) update(link.previous);
  }
  size_t out = 0;
  for (uint32_t at = 0; at != none; at = links[at].next) symbols[out++] = symbols[at];
  symbols.resize(out);
}

}  // namespace weft
