#include "attention/chunks.h"

#include <algorithm>

#include "autograd/ops/arrange.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/scan.h"

namespace weft {

Chunks cut_chunks(const Layout& layout, int64_t length, Device device) {
  Chunks c;
  // One short document needs no longer chunk than itself: a decoded token is a chunk of one.
  int64_t longest = 1;
  for (const Segment& s : layout.segments) longest = std::max(longest, s.size());
  c.length = std::min(length, longest);
  std::vector<int32_t> to_chunks, to_tokens, segment;
  int32_t token = 0;
  for (size_t g = 0; g < layout.segments.size(); ++g) {
    c.first.push_back(static_cast<int>(segment.size()));
    const int64_t size = layout.segments[g].size(), count = (size + c.length - 1) / c.length;
    for (int64_t i = 0; i < count * c.length; ++i) {
      if (i < size) to_tokens.push_back(static_cast<int32_t>(to_chunks.size()));
      to_chunks.push_back(i < size ? token++ : -1);
    }
    segment.insert(segment.end(), static_cast<size_t>(count), static_cast<int32_t>(g));
  }
  c.count = static_cast<int64_t>(segment.size());
  c.first.push_back(static_cast<int>(c.count));
  c.exact = to_chunks.size() == to_tokens.size();
  c.to_chunks = from_ints(to_chunks, device);
  c.to_tokens = from_ints(to_tokens, device);
  c.segment = from_ints(segment, device);
  return c;
}

Block into_chunks(const Block& block, const Chunks& chunks, const std::vector<double>& pad) {
  const auto chunked = [&](const Variable& x, double fill) {
    Shape shape{chunks.count, chunks.length};
    for (int i = 1; i < x.rank(); ++i) shape.push_back(x.dim(i));
    return reshape(chunks.exact ? x : gather_rows(x, chunks.to_chunks, fill), shape);
  };
  Block out;
  CHECK(pad.size() == block.x.size(), "scan: ", block.x.size(), " inputs, ", pad.size(), " pads");
  for (size_t i = 0; i < block.x.size(); ++i) out.x.push_back(chunked(block.x[i], pad[i]));
  out.position = chunked(block.position, -1);
  out.document = chunked(block.document, -1);
  return out;
}

Variable out_of_chunks(const Variable& y, const Chunks& chunks) {
  Shape shape{chunks.count * chunks.length};
  for (int i = 2; i < y.rank(); ++i) shape.push_back(y.dim(i));
  const Variable rows = reshape(y, shape);
  return chunks.exact ? rows : gather_rows(rows, chunks.to_tokens);
}

Variable sum_by_segment(const Variable& x, const Layout& layout) {
  constexpr int64_t kLength = 64;
  const Device device = x.device();
  const Chunks chunks = cut_chunks(layout, kLength, device);
  const auto segments = static_cast<int64_t>(layout.segments.size());
  if (chunks.count == 0) return zeros(x.shape().with(0, segments), x.dtype(), device);
  const Variable sums = sum(into_chunks({{x}, layout.position, layout.document}, chunks, {0}).x[0], 1);
  const std::vector<int32_t> first(chunks.first.begin(), chunks.first.end());
  const Variable undecayed = full({chunks.count, 1}, 1, x.dtype(), device);
  const Variable rows = reshape(sums, {chunks.count, x.numel() / x.dim(0)});
  return reshape(decay_scan(undecayed, rows, from_ints(first, device))[3], x.shape().with(0, segments));
}

Variable padding_in_front(const Variable& x, const Tensor& document) {
  const Tensor row = empty(document.shape(), Dtype::i32, document.device());
  ON_DEVICE(row.device(), rows_padded_in_front(row, document.contiguous()));
  Shape flat{row.numel()};
  for (int i = 2; i < x.rank(); ++i) flat.push_back(x.dim(i));
  return reshape(gather_rows(reshape(x, flat), row.reshape({row.numel()})), x.shape());
}

Tensor turned_rows(const Layout& layout, Device device) {
  std::vector<int32_t> rows;
  int64_t first = 0;
  for (const Segment& s : layout.segments) {
    for (int64_t i = s.size(); i-- > 0;) rows.push_back(static_cast<int32_t>(first + i));
    first += s.size();
  }
  return from_ints(rows, device);
}

Block gather_block(const Block& block, const Tensor& rows) {
  Block out{{}, gather_rows(block.position, rows).value(), gather_rows(block.document, rows).value()};
  for (const Variable& x : block.x) out.x.push_back(gather_rows(x, rows));
  return out;
}

Block slice_block(const Block& block, int64_t begin, int64_t end) {
  Block out{{}, block.position.rows(begin, end), block.document.rows(begin, end)};
  for (const Variable& x : block.x) out.x.push_back(slice(x, 0, begin, end));
  return out;
}

State gather_state(const State& state, const Tensor& index) {
  State out;
  for (const Variable& v : state) out.push_back(gather_rows(v, index));
  return out;
}

State concatenate_states(const std::vector<State>& states) {
  State out;
  for (size_t i = 0; i < states[0].size(); ++i) {
    std::vector<Variable> parts;
    for (const State& s : states) parts.push_back(s[i]);
    out.push_back(concatenate(parts, 0));
  }
  return out;
}

namespace {

// By `combine`, all segments abreast: step j folds chunk j of every segment that has one.
Folded fold_by_combining(const Scan& scan, const State& summaries, const Chunks& chunks) {
  const int segments = static_cast<int>(chunks.first.size()) - 1;
  const Device device = chunks.segment.device();
  std::vector<int> active;
  for (int g = 0; g < segments; ++g)
    if (chunks.first[g + 1] > chunks.first[g]) active.push_back(g);
  std::vector<State> prefixes, totals;
  std::vector<int32_t> prefix_of(static_cast<size_t>(chunks.count)), total_of(static_cast<size_t>(segments));
  int prefix_rows = 0, total_rows = 0;
  State state = gather_state(scan.identity(), from_ints(std::vector<int32_t>(active.size(), 0), device));
  for (int j = 0; !active.empty(); ++j) {
    std::vector<int32_t> chunk, on, off;
    std::vector<int> next;
    for (size_t i = 0; i < active.size(); ++i) {
      const int g = active[i];
      chunk.push_back(chunks.first[g] + j);
      prefix_of[chunk.back()] = prefix_rows++;
      if (chunks.first[g] + j + 1 < chunks.first[g + 1]) {
        on.push_back(static_cast<int32_t>(i));
        next.push_back(g);
      } else {
        off.push_back(static_cast<int32_t>(i));
        total_of[g] = total_rows++;
      }
    }
    prefixes.push_back(state);
    const State after = scan.combine(state, gather_state(summaries, from_ints(chunk, device)));
    if (!off.empty())
      totals.push_back(off.size() == active.size() ? after : gather_state(after, from_ints(off, device)));
    if (!on.empty()) state = on.size() == active.size() ? after : gather_state(after, from_ints(on, device));
    active = next;
  }
  return {gather_state(concatenate_states(prefixes), from_ints(prefix_of, device)),
          gather_state(concatenate_states(totals), from_ints(total_of, device))};
}

}  // namespace

Folded fold(const Scan& scan, const State& summaries, const Chunks& chunks) {
  if (chunks.count == 0) {
    const State none = gather_state(scan.identity(), chunks.segment);
    return {none, none};
  }
  if (!scan.decay) return fold_by_combining(scan, summaries, chunks);
  CHECK(summaries.size() == 2, "scan: a decay scan has the state {a, S}");
  const std::vector<int32_t> first(chunks.first.begin(), chunks.first.end());
  const auto folded = decay_scan(summaries[0], summaries[1], from_ints(first, chunks.segment.device()));
  return {{folded[0], folded[1]}, {folded[2], folded[3]}};
}

namespace {

// Of the states of `before` documents those of some.
State documents_of(const State& state, int64_t before, const std::vector<int32_t>& some) {
  State out;
  for (const Variable& v : state) {
    const Variable rows = reshape(v, {before, v.numel() / before});
    const Variable chosen = gather_rows(rows, from_ints(some, v.device()));
    out.push_back(reshape(chosen, v.shape().with(0, v.dim(0) / before * static_cast<int64_t>(some.size()))));
  }
  return out;
}

}  // namespace

// In rounds, each as long as its shortest document needs, up to a multiple of the chunk. Behind that
// document's end its last token stands again; nobody looks there, since later tokens change no earlier
// output.
Variable carry_abreast(const Carry& part, const Block& block, const Layout& layout) {
  struct Walk {
    int64_t row, left;
  };
  const Device device = block.x[0].device();
  std::vector<Walk> active;
  int64_t row = 0;
  for (const Segment& s : layout.segments) {
    if (s.size() > 0) active.push_back({row, s.size()});
    row += s.size();
  }
  if (active.empty()) return carry_nothing(part, block);
  State state = part.start();
  if (active.size() > 1) state = concatenate_states(std::vector<State>(active.size(), state));
  std::vector<Variable> outputs;
  std::vector<int32_t> place(static_cast<size_t>(row));  // of each token, its row of the outputs
  int32_t made = 0;
  bool in_order = true;
  while (!active.empty()) {
    const auto [least, most] = std::minmax_element(
        active.begin(), active.end(), [](const Walk& a, const Walk& b) { return a.left < b.left; });
    const bool alike = least->left == most->left;
    const int64_t n = alike ? least->left : (least->left + part.chunk - 1) / part.chunk * part.chunk;
    std::vector<int32_t> rows, on;
    std::vector<Walk> next;
    for (size_t i = 0; i < active.size(); ++i) {
      const Walk& w = active[i];
      for (int64_t t = 0; t < n; ++t, ++made) {
        rows.push_back(static_cast<int32_t>(w.row + std::min(t, w.left - 1)));
        if (t < w.left) place[static_cast<size_t>(w.row + t)] = made;
      }
      if (w.left <= n) continue;
      on.push_back(static_cast<int32_t>(i));
      next.push_back({w.row + n, w.left - n});
    }
    const bool all = outputs.empty() && alike;  // documents of one length
    in_order = in_order && all;
    auto [y, after] = part.step(all ? block : gather_block(block, from_ints(rows, device)), state);
    outputs.push_back(y);
    if (!on.empty())
      state =
          on.size() == active.size() ? after : documents_of(after, static_cast<int64_t>(active.size()), on);
    active = next;
  }
  if (in_order) return outputs[0];
  return gather_rows(outputs.size() == 1 ? outputs[0] : concatenate(outputs, 0), from_ints(place, device));
}

Variable carry_nothing(const Carry& part, const Block& block) {
  const NoTape pause;
  const Device device = block.x[0].device();
  Block one{{}, from_ints({0}, device), from_ints({0}, device)};
  for (const Variable& x : block.x) one.x.push_back(zeros(x.shape().with(0, 1), x.dtype(), device));
  return slice(part.step(one, part.start()).first, 0, 0, 0);
}

}  // namespace weft
