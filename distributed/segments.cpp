#include "distributed/segments.h"

#include <algorithm>
#include <numeric>

#include "autograd/check.h"

namespace weft {
namespace {

// The line of tokens, and the places where it may be cut.
class Line {
 public:
  Line(std::span<const int64_t> lengths, int64_t align) : align_(align) {
    starts_.push_back(0);
    for (int64_t length : lengths) {
      CHECK(length >= 0, "segments: a document of ", length, " tokens");
      starts_.push_back(starts_.back() + length);
    }
  }

  int64_t size() const { return starts_.back(); }

  // The allowed cut nearest to place; the earlier one of two.
  int64_t nearest_cut(int64_t place) const {
    if (place >= size()) return size();
    const size_t d = document_at(place);
    const int64_t start = starts_[d], length = starts_[d + 1] - start, offset = place - start;
    const int64_t below = offset / align_ * align_, above = std::min(below + align_, length);
    return start + (offset - below <= above - offset ? below : above);
  }

  // [begin, end) of the line, document by document, appended; joins what continues the last segment.
  void append(int64_t begin, int64_t end, Segments& to) const {
    for (size_t d = begin < end ? document_at(begin) : 0; begin < end; ++d) {
      const int64_t stop = std::min(end, starts_[d + 1]);
      if (stop == begin) continue;  // an empty document
      const Segment next{static_cast<int>(d), begin - starts_[d], stop - starts_[d]};
      if (!to.empty() && to.back().document == next.document && to.back().end == next.begin)
        to.back().end = next.end;
      else
        to.push_back(next);
      begin = stop;
    }
  }

  // The line in n equal parts, some empty where there are fewer places to cut: n + 1 borders.
  std::vector<int64_t> borders(int64_t n) const {
    std::vector<int64_t> result(n + 1);
    for (int64_t i = 0; i <= n; ++i) result[i] = nearest_cut(size() / n * i + size() % n * i / n);
    return result;
  }

 private:
  size_t document_at(int64_t place) const {  // place < size()
    return std::upper_bound(starts_.begin(), starts_.end(), place) - starts_.begin() - 1;
  }

  int64_t align_;
  std::vector<int64_t> starts_;
};

// owner[i] is the rank of part i.
std::vector<Segments> deal(const Line& line, const std::vector<int64_t>& borders,
                           const std::vector<int>& owner, int ranks) {
  std::vector<Segments> lists(ranks);
  for (size_t i = 0; i < owner.size(); ++i) line.append(borders[i], borders[i + 1], lists[owner[i]]);
  return lists;
}

// The costliest part first, each to the rank with the least cost so far that holds fewer than `each` parts.
std::vector<int> deal_by_cost(const std::vector<int64_t>& cost, int ranks, int each) {
  std::vector<int> order(cost.size()), owner(cost.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return cost[a] > cost[b]; });
  std::vector<int64_t> load(ranks);
  std::vector<int> held(ranks);
  for (int part : order) {
    int best = -1;
    for (int r = 0; r < ranks; ++r)
      if (held[r] < each && (best < 0 || load[r] < load[best])) best = r;
    owner[part] = best;
    load[best] += cost[part];
    ++held[best];
  }
  return owner;
}

// Equal parts, twice as many in every round, until dealing them by cost is fair. The fewest parts win: each
// one costs a state and a halo on the wire.
std::vector<Segments> plan_balanced(const Line& line, int ranks, int64_t align) {
  constexpr double fair = 1.01;
  constexpr int most_parts = 32;
  std::vector<Segments> best;
  int64_t best_cost = 0;
  for (int each = 2; each <= most_parts; each *= 2) {
    const std::vector<int64_t> borders = line.borders(int64_t{each} * ranks);
    std::vector<int64_t> cost;
    for (size_t i = 0; i + 1 < borders.size(); ++i) {
      Segments part;
      line.append(borders[i], borders[i + 1], part);
      cost.push_back(causal_cost(part));
    }
    std::vector<Segments> lists = deal(line, borders, deal_by_cost(cost, ranks, each), ranks);
    int64_t highest = 0;
    for (const Segments& list : lists) highest = std::max(highest, causal_cost(list));
    if (best.empty() || highest < best_cost) best = std::move(lists), best_cost = highest;
    const double mean = static_cast<double>(std::accumulate(cost.begin(), cost.end(), int64_t{0})) / ranks;
    if (static_cast<double>(best_cost) <= fair * mean || line.size() < int64_t{each} * ranks * align) break;
  }
  return best;
}

}  // namespace

std::vector<Segments> plan_segments(SegmentPlan plan, std::span<const int64_t> lengths, int ranks,
                                    int64_t align) {
  CHECK(ranks > 0 && align > 0, "segments: ", ranks, " ranks, align ", align);
  const Line line(lengths, align);
  if (plan == SegmentPlan::balanced && ranks > 1) return plan_balanced(line, ranks, align);
  const int parts = plan == SegmentPlan::zigzag ? 2 * ranks : ranks;
  std::vector<int> owner(parts);
  for (int i = 0; i < parts; ++i) owner[i] = std::min(i, 2 * ranks - 1 - i);
  return deal(line, line.borders(parts), owner, ranks);
}

int64_t count_tokens(const Segments& segments) {
  int64_t n = 0;
  for (const Segment& s : segments) n += s.end - s.begin;
  return n;
}

int64_t causal_cost(const Segments& segments) {
  int64_t cost = 0;
  for (const Segment& s : segments) cost += (s.end - s.begin) * (s.begin + s.end + 1) / 2;
  return cost;
}

}  // namespace weft
