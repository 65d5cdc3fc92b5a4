#include "tools/apply_states.h"

#include <algorithm>

#include "attention/chunks.h"
#include "autograd/ops/arrange.h"

namespace weft {
namespace {

std::vector<int32_t> ints_of(const Tensor& x) {
  const Tensor dense = x.contiguous().to(Device::cpu);
  return {dense.data<int32_t>(), dense.data<int32_t>() + dense.numel()};
}

// What a chunk begins with and whether a document ends in it.
struct ChunkPlaces {
  Tensor start;  // (M) i32: 1 + row of the given states that it starts from; 0: none
  std::vector<std::pair<int, int32_t>> ends;  // document, chunk
};

ChunkPlaces places_of(const Block& chunks, const std::vector<StateDocument>& documents,
                      const std::vector<bool>& ends_here) {
  const std::vector<int32_t> position = ints_of(chunks.position), document = ints_of(chunks.document);
  const auto count = static_cast<size_t>(chunks.position.dim(0)),
             length = static_cast<size_t>(chunks.position.dim(1));
  ChunkPlaces places;
  std::vector<int32_t> start(count, 0);
  for (size_t m = 0; m < count; ++m) {
    const size_t first = m * length;
    const StateDocument& d = documents[static_cast<size_t>(document[first])];
    if (position[first] == 0) start[m] = static_cast<int32_t>(d.given + 1);
    const auto last = first + static_cast<size_t>(d.length - 1 - position[first]);  // place of its last token
    const bool ends = last < first + length && document[last] == document[first];
    if (ends && ends_here[static_cast<size_t>(document[first])])
      places.ends.emplace_back(document[first], static_cast<int32_t>(m));
  }
  places.start = from_ints(start, chunks.position.device());
  return places;
}

// Of each chunk, the state before it that was given; identity elsewhere.
State starts_of(const PartStates& states, const State& identity, const Tensor& start) {
  const Tensor none = from_ints(std::vector<int32_t>(static_cast<size_t>(start.dim(0)), 0), start.device());
  State out;
  for (size_t i = 0; i < identity.size(); ++i) {
    const bool given = i < states.given.size() && states.given[i].defined();
    out.push_back(given ? gather_rows(concatenate({identity[i], states.given[i]}, 0), start)
                        : gather_rows(identity[i], none));
  }
  return out;
}

Variable with_row_axis(const Variable& v) {
  Shape shape{1};
  for (const int64_t extent : v.shape()) shape.push_back(extent);
  return reshape(v, shape);
}

bool any_given(const PartStates& states) {
  return std::any_of(states.given.begin(), states.given.end(), [](const Variable& v) { return v.defined(); });
}

// The same step in pieces of at most `chunk` tokens.
Carry in_pieces(const Carry& part, int64_t chunk) {
  Carry out = part;
  out.step = [part, chunk](const Block& block, const State& state) {
    State now = state;
    std::vector<Variable> outputs;
    const int64_t n = block.position.dim(0);
    for (int64_t at = 0; at < n; at += chunk) {
      auto [y, after] = part.step(slice_block(block, at, std::min(n, at + chunk)), now);
      outputs.push_back(y);
      now = after;
    }
    return std::pair{concatenate(outputs, 0), now};
  };
  return out;
}

}  // namespace

StatesCrossing::StatesCrossing(Crossing& inner, std::vector<StateDocument> documents,
                               std::vector<PartStates>& parts, int64_t chunk)
    : Crossing(inner.layout()),
      inner_(inner),
      documents_(std::move(documents)),
      ends_here_(documents_.size(), false),
      parts_(parts),
      chunk_(chunk) {
  for (const Segment& s : layout().segments) {
    const auto d = static_cast<size_t>(s.document);
    ends_here_[d] = ends_here_[d] || s.end == documents_[d].length;
  }
}

PartStates& StatesCrossing::next_part(const std::vector<std::string>& names, const State& start,
                                      int leading_axes) {
  if (calls_ == parts_.size()) parts_.emplace_back();
  PartStates& states = parts_[calls_++];
  states.names = names;
  states.shapes.clear();
  for (const Variable& v : start)
    states.shapes.emplace_back(v.shape().begin() + leading_axes, v.shape().end());
  return states;
}

Variable StatesCrossing::operator()(const Scan& part, const Block& block) {
  Scan scan = part;
  if (chunk_ > 0) scan.chunk = chunk_;
  if (part.total || part.reverse) return inner_(scan, block);  // of no text that could go on
  const State identity = part.identity();
  PartStates& states = next_part(part.names, identity, 1);
  if (block.position.device() == Device::meta) return inner_(scan, block);

  // Every chunk's state is that of its tokens after what its document starts from, and `apply` sees what it
  // starts from before what the crossing knows.
  State summaries;
  scan.whole = nullptr;
  scan.step = nullptr;
  scan.summarize = [&](const Block& chunks) {
    summaries = part.summarize(chunks);
    if (any_given(states))
      summaries = part.combine(starts_of(states, identity, places_of(chunks, documents_, ends_here_).start),
                               summaries);
    return summaries;
  };
  scan.apply = [&](const Block& chunks, const State& prefix) {
    const ChunkPlaces places = places_of(chunks, documents_, ends_here_);
    for (const auto& [document, chunk] : places.ends) {
      const Tensor row = from_ints({chunk}, chunks.position.device());
      states.last[document] = part.combine(gather_state(prefix, row), gather_state(summaries, row));
    }
    if (!any_given(states)) return part.apply(chunks, prefix);
    return part.apply(chunks, part.combine(starts_of(states, identity, places.start), prefix));
  };
  if (part.kernel.on(block.x[0].device()))
    scan.kernel.run = [&](const Block& tokens, const Layout& layout, const State& start, bool) {
      State before = start;
      if (any_given(states)) {
        std::vector<int32_t> rows;  // as in ChunkPlaces
        for (const Segment& s : layout.segments)
          rows.push_back(s.begin == 0 ? static_cast<int32_t>(documents_[s.document].given + 1) : 0);
        const State given = starts_of(states, identity, from_ints(rows, tokens.position.device()));
        before = start.empty() ? given : part.combine(given, start);
      }
      Scan::Ran ran = part.kernel.run(tokens, layout, before, true);
      int32_t row = 0;
      for (const Segment& s : layout.segments) {
        if (s.end == documents_[s.document].length && ends_here_[static_cast<size_t>(s.document)])
          states.last[s.document] = gather_state(ran.end, from_ints({row}, tokens.position.device()));
        ++row;
      }
      return ran;
    };
  return inner_(scan, block);
}

Variable StatesCrossing::operator()(const Carry& part, const Block& block) {
  const Carry steps = chunk_ > 0 ? in_pieces(part, chunk_) : part;
  PartStates& states = next_part(part.names, part.start(), 0);
  if (block.position.device() == Device::meta) return inner_(steps, block);
  Carry carry = steps;
  carry.chunk = 0;  // document by document
  carry.step = [&](const Block& tokens, const State& state) {
    const int document = ints_of(tokens.document)[0];
    const int64_t first = ints_of(tokens.position)[0];
    const StateDocument& d = documents_[static_cast<size_t>(document)];
    State from = state;
    if (first == 0 && d.given >= 0)
      for (size_t i = 0; i < states.given.size(); ++i)
        if (states.given[i].defined())
          from[i] = reshape(slice(states.given[i], 0, d.given, d.given + 1), states.shapes[i]);
    auto result = steps.step(tokens, from);
    if (first + tokens.position.dim(0) == d.length && ends_here_[static_cast<size_t>(document)]) {
      State& last = states.last[document];
      last.clear();
      for (const Variable& v : result.second) last.push_back(with_row_axis(v));
    }
    return result;
  };
  return inner_(carry, block);
}

}  // namespace weft
