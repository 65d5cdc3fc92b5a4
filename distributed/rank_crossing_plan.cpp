#include "distributed/rank_crossing_plan.h"

#include <algorithm>

namespace weft {
namespace {

using Indices = std::vector<int32_t>;

void append_range(Indices& to, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) to.push_back(static_cast<int32_t>(i));
}

// The rows of these pieces, which are sorted as their ranks hold them.
GatheredRows gathered(const std::vector<Piece>& pieces, int ranks, Device device) {
  GatheredRows rows;
  rows.counts.resize(static_cast<size_t>(ranks));
  Segments all;
  for (const Piece& p : pieces) {
    rows.counts[static_cast<size_t>(p.rank)] += p.segment.size();
    rows.total += p.segment.size();
    all.push_back(p.segment);
  }
  const Layout layout = make_layout(all, device);
  rows.position = layout.position;
  rows.document = layout.document;
  return rows;
}

std::vector<Piece> by_rank(std::vector<Piece> pieces) {
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) {
    return a.rank != b.rank ? a.rank < b.rank : a.index < b.index;
  });
  return pieces;
}

}  // namespace

RankPlan::RankPlan(std::vector<Segments> segments, int rank, Device device)
    : segments_(std::move(segments)), rank_(rank), device_(device) {
  CHECK(0 <= rank && rank < ranks(), "crossing: rank ", rank, " of ", ranks());
  find_pieces();
  plan_cut();
  plan_states();
}

void RankPlan::find_pieces() {
  for (int r = 0; r < ranks(); ++r) {
    int64_t row = 0;
    const Segments& list = segments_[static_cast<size_t>(r)];
    for (size_t i = 0; i < list.size(); ++i) {
      pieces_.push_back({list[i], r, static_cast<int>(i), row});
      row += list[i].size();
    }
  }
  std::sort(pieces_.begin(), pieces_.end(), [](const Piece& a, const Piece& b) {
    return a.segment.document != b.segment.document ? a.segment.document < b.segment.document
                                                    : a.segment.begin < b.segment.begin;
  });
  Indices segment;
  for (size_t g = 0; g < segments().size(); ++g)
    segment.insert(segment.end(), static_cast<size_t>(segments()[g].size()), static_cast<int32_t>(g));
  segment_of_token_ = from_ints(segment, device_);
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const Segment& s = pieces_[i].segment;
    const bool continues = i > 0 && pieces_[i - 1].segment.document == s.document;
    CHECK(s.begin == (continues ? pieces_[i - 1].segment.end : 0), "crossing: token ", s.begin,
          " of document ", s.document, " does not follow what is held of it before");
    if (continues) pieces_[i - 1].cut = pieces_[i].cut = true;
  }
}

void RankPlan::plan_cut() {
  std::vector<Piece> cut;
  for (const Piece& p : pieces_)
    if (p.cut) cut.push_back(p);
  cut_.rows = gathered(by_rank(cut), ranks(), device_);
  Indices own, rest;
  Segments pieces;
  for (const Piece& p : by_rank(pieces_)) {
    if (p.rank != rank_) continue;
    append_range(p.cut ? own : rest, p.row, p.row + p.segment.size());
    if (p.cut) pieces.push_back(p.segment);
  }
  Indices back(own.size() + rest.size());
  int32_t at = 0;
  for (const Indices* part : {&rest, &own})
    for (const int32_t row : *part) back[static_cast<size_t>(row)] = at++;
  cut_.own = from_ints(own, device_);
  cut_.layout = make_layout(pieces, device_);
  cut_.rest = from_ints(rest, device_);
  cut_.back = from_ints(back, device_);
}

void RankPlan::plan_states() {
  States& s = states_;
  s.counts.resize(static_cast<size_t>(ranks()));
  const auto here = static_cast<int32_t>(segments().size());
  Indices own, order, order_back, document_of_piece, before(segments().size()), document;
  Indices before_back(segments().size());
  append_range(document, 0, here);
  std::map<std::pair<int, int>, int32_t> gathered_row;  // of (rank, index)
  for (const Piece& p : by_rank(pieces_)) {
    if (!p.cut) continue;
    gathered_row[{p.rank, p.index}] = static_cast<int32_t>(s.total++);
    ++s.counts[static_cast<size_t>(p.rank)];
    if (p.rank == rank_) own.push_back(p.index);
  }
  for (size_t i = 0, end = 0; i < pieces_.size(); i = end) {
    bool held = false;
    for (end = i; end < pieces_.size() && pieces_[end].segment.document == pieces_[i].segment.document; ++end)
      held |= pieces_[end].rank == rank_;
    if (!pieces_[i].cut || !held) continue;
    const auto number = static_cast<int32_t>(s.documents.first.size()),
               first = static_cast<int32_t>(order.size());
    s.documents.first.push_back(static_cast<int>(order.size()));
    for (size_t j = i; j < end; ++j) {
      const Piece& p = pieces_[j];
      order.push_back(gathered_row[{p.rank, p.index}]);
      document_of_piece.push_back(number);
      if (p.rank != rank_) continue;
      before[static_cast<size_t>(p.index)] = static_cast<int32_t>(order.size());
      before_back[static_cast<size_t>(p.index)] = first + static_cast<int32_t>(end - j);
      document[static_cast<size_t>(p.index)] = here + number;
    }
    order_back.insert(order_back.end(), order.rbegin(), order.rend() - first);
  }
  s.documents.first.push_back(static_cast<int>(order.size()));
  s.documents.count = std::ssize(order);
  s.documents.length = 1;
  s.documents.segment = from_ints(document_of_piece, device_);
  s.own = from_ints(own, device_);
  s.order = from_ints(order, device_);
  s.before = from_ints(before, device_);
  s.order_back = from_ints(order_back, device_);
  s.before_back = from_ints(before_back, device_);
  s.document = from_ints(document, device_);
}

const RankPlan::Whole& RankPlan::whole() {
  if (whole_.line.defined()) return whole_;
  whole_.rows = gathered(by_rank(pieces_), ranks(), device_);
  std::vector<int64_t> start(static_cast<size_t>(ranks()));  // of a rank's rows among the gathered
  for (size_t r = 1; r < start.size(); ++r) start[r] = start[r - 1] + whole_.rows.counts[r - 1];
  Segments documents;
  Indices line, own(static_cast<size_t>(whole_.rows.counts[static_cast<size_t>(rank_)]));
  for (const Piece& p : pieces_) {
    if (p.rank == rank_)
      for (int64_t i = 0; i < p.segment.size(); ++i)
        own[static_cast<size_t>(p.row + i)] = static_cast<int32_t>(std::ssize(line) + i);
    const int64_t first = start[static_cast<size_t>(p.rank)] + p.row;
    append_range(line, first, first + p.segment.size());
    if (p.segment.begin == 0)
      documents.push_back(p.segment);
    else
      documents.back().end = p.segment.end;
  }
  whole_.layout = make_layout(documents, device_);
  whole_.line = from_ints(line, device_);
  whole_.own = from_ints(own, device_);
  return whole_;
}

const RankPlan::Halos& RankPlan::halos(int64_t width) {
  const auto [found, fresh] = halos_.try_emplace(width);
  Halos& h = found->second;
  if (!fresh) return h;
  const auto count = static_cast<size_t>(ranks());
  std::vector<Indices> send(count), slots(count);  // by the other rank
  std::vector<int64_t> line_rows(segments().size());
  int64_t line_row = 0;
  // Sender and receiver list the rows of a pair in the same order: along the pieces, then along the tokens.
  for (size_t i = 0; i < pieces_.size(); line_row += pieces_[i++].segment.size()) {
    const Piece& to = pieces_[i];
    const int64_t first = std::max<int64_t>(0, to.segment.begin - width);
    size_t j = i;
    while (j > 0 && pieces_[j - 1].segment.document == to.segment.document &&
           pieces_[j - 1].segment.end > first)
      --j;
    if (to.rank == rank_) line_rows[static_cast<size_t>(to.index)] = line_row;
    for (; j < i; ++j) {
      const Piece& from = pieces_[j];
      const int64_t begin = std::max(first, from.segment.begin), end = from.segment.end;
      if (from.rank == rank_) {
        const int64_t shift = from.row - from.segment.begin;
        append_range(send[static_cast<size_t>(to.rank)], begin + shift, end + shift);
      }
      if (to.rank == rank_) {
        const int64_t shift = to.index * width - (to.segment.begin - width);
        append_range(slots[static_cast<size_t>(from.rank)], begin + shift, end + shift);
      }
    }
  }
  const size_t rows = segments().size() * static_cast<size_t>(width);
  Indices sent_rows, place(rows, -1), line(rows, -1), position(rows, -1), segment(rows, -1);
  int32_t at = 0;
  for (size_t r = 0; r < count; ++r) {
    h.sent.push_back(std::ssize(send[r]));
    h.received.push_back(std::ssize(slots[r]));
    sent_rows.insert(sent_rows.end(), send[r].begin(), send[r].end());
    for (const int32_t slot : slots[r]) {
      const auto g = static_cast<size_t>(slot / width);
      place[static_cast<size_t>(slot)] = at++;
      line[static_cast<size_t>(slot)] = static_cast<int32_t>(line_rows[g] - width + slot % width);
      position[static_cast<size_t>(slot)] = static_cast<int32_t>(segments()[g].begin - width + slot % width);
      segment[static_cast<size_t>(slot)] = static_cast<int32_t>(g);
    }
  }
  h.send = from_ints(sent_rows, device_);
  h.place = from_ints(place, device_);
  h.line = from_ints(line, device_);
  h.position = from_ints(position, device_);
  h.segment = from_ints(segment, device_);
  return h;
}

namespace {

int64_t own_of(const std::vector<int64_t>& counts, int rank) { return counts[static_cast<size_t>(rank)]; }

// All gather forward, reduce and scatter on the way back.
PartBytes gather_and_reduce(const std::vector<int64_t>& counts, int64_t total, int rank, int64_t row) {
  const int64_t own = own_of(counts, rank), ranks = std::ssize(counts);
  PartBytes b;
  b.forward.all_gather = (ranks - 1) * own * row;
  b.backward.reduce_scatter = (total - own) * row;
  return b;
}

}  // namespace

PartBytes scan_bytes(const RankPlan& plan, int64_t state) {
  return gather_and_reduce(plan.states().counts, plan.states().total, plan.rank(), state);
}

PartBytes total_bytes(const RankPlan& plan, int64_t row) {
  return gather_and_reduce(std::vector<int64_t>(static_cast<size_t>(plan.ranks()), 1), plan.ranks(),
                           plan.rank(), row);
}

PartBytes gather_bytes(RankPlan& plan, int64_t row) {
  const GatheredRows& rows = plan.whole().rows;
  return gather_and_reduce(rows.counts, rows.total, plan.rank(), row);
}

PartBytes merge_bytes(const RankPlan& plan, int64_t keys) {
  const GatheredRows& rows = plan.cut().rows;
  return gather_and_reduce(rows.counts, rows.total, plan.rank(), keys);
}

PartBytes ring_bytes(const RankPlan& plan, int64_t keys, int64_t wide_keys) {
  const GatheredRows& rows = plan.cut().rows;
  PartBytes b;
  if (plan.ranks() == 1) return b;
  // Every part of the keys passes through here but the next rank's own, which ends its way there.
  const int64_t passed = rows.total - own_of(rows.counts, (plan.rank() + 1) % plan.ranks());
  b.forward.send_recv = passed * keys;
  b.backward.send_recv = passed * keys + rows.total * wide_keys;
  return b;
}

PartBytes heads_bytes(const RankPlan& plan, int64_t inputs, int64_t outputs) {
  const GatheredRows& rows = plan.cut().rows;
  const int64_t own = own_of(rows.counts, plan.rank()), others = rows.total - own, ranks = plan.ranks();
  PartBytes b;
  b.forward.all_to_all = (own * (ranks - 1) * inputs + others * outputs) / ranks;
  b.backward.all_to_all = (others * inputs + own * (ranks - 1) * outputs) / ranks;
  return b;
}

PartBytes carry_bytes(const RankPlan& plan, int64_t state) {
  PartBytes b;
  const std::vector<Piece>& pieces = plan.pieces();
  for (size_t i = 1; i < pieces.size(); ++i) {
    const Piece &from = pieces[i - 1], &to = pieces[i];
    if (to.segment.begin == 0 || from.rank == to.rank) continue;
    if (from.rank == plan.rank()) b.forward.send_recv += state;
    if (to.rank == plan.rank()) b.backward.send_recv += state;
  }
  return b;
}

PartBytes halo_bytes(RankPlan& plan, int64_t width, int64_t row) {
  PartBytes b;
  const RankPlan::Halos& h = plan.halos(width);
  for (int r = 0; r < plan.ranks(); ++r) {
    if (r == plan.rank()) continue;
    b.forward.all_to_all += own_of(h.sent, r) * row;
    b.backward.all_to_all += own_of(h.received, r) * row;
  }
  return b;
}

}  // namespace weft
