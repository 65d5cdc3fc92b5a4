#include <algorithm>
#include <utility>

#include "attention/chunks.h"
#include "attention/crossing.h"
#include "attention/merge.h"
#include "attention/seen_pairs.h"
#include "autograd/flops.h"
#include "autograd/layout_bounds.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/planned_device.h"

namespace weft {
namespace {

std::vector<Tensor> values_of(const Block& block) {
  std::vector<Tensor> values;
  for (const Variable& x : block.x) values.push_back(x.value());
  values.push_back(block.position);
  values.push_back(block.document);
  return values;
}

}  // namespace

void RowCache::extend(const std::vector<Tensor>& like, int64_t count) {
  if (buffers_.empty())
    for (const Tensor& r : like) buffers_.push_back(weft::empty(r.shape().with(0, 0), r.dtype(), r.device()));
  if (begin_ + size_ + count > capacity()) {
    const int64_t needed = size_ + count;
    const int64_t larger = needed <= expected_ ? expected_ : std::max<int64_t>(16, 2 * needed);
    for (Tensor& buffer : buffers_) {
      const Tensor grown = weft::empty(buffer.shape().with(0, larger), buffer.dtype(), buffer.device());
      if (size_ > 0) grown.rows(0, size_).copy_from(buffer.rows(begin_, begin_ + size_));
      buffer = grown;
    }
    begin_ = 0;
  }
  size_ += count;
}

void RowCache::append(const std::vector<Tensor>& rows) {
  const int64_t n = rows[0].dim(0);
  extend(rows, n);
  const int64_t end = begin_ + size_;
  for (size_t i = 0; i < rows.size(); ++i)
    if (n > 0) buffers_[i].rows(end - n, end).copy_from(rows[i]);
}

void RowCache::keep_last(int64_t count) {
  if (size_ <= count) return;
  begin_ += size_ - count;
  size_ = count;
}

int64_t RowCache::bytes() const {
  int64_t bytes = 0;
  for (const Tensor& b : buffers_) bytes += size_ * b.row_size() * size_of(b.dtype());
  return bytes;
}

int64_t Stream::bytes() const {
  int64_t bytes = 0;
  for (const Slot& slot : slots) {
    for (const auto& [document, state] : slot.states)
      for (const Variable& v : state) bytes += v.value().bytes();
    for (const auto& [document, rows] : slot.rows) bytes += rows.bytes();
    if (!slot.window.documents.empty())
      for (const Tensor& x : values_of(slot.window.before)) bytes += x.bytes();
  }
  return bytes;
}

bool Stream::steady() const {
  return std::all_of(slots.begin(), slots.end(), [](const Slot& slot) { return slot.steady; });
}

std::vector<Variable> Crossing::step(const Merge&, const Block&, double) {
  throw Error(Exit::internal, "this crossing takes no steps");
}

Stream::Slot* LocalCrossing::next_slot() {
  if (stream_ == nullptr) {
    for (const Segment& s : layout().segments)
      CHECK(s.begin == 0, "document ", s.document, " starts at token ", s.begin,
            ": its past is in no stream");
    return nullptr;
  }
  if (calls_ == stream_->slots.size()) stream_->slots.emplace_back();
  Stream::Slot& slot = stream_->slots[calls_++];
  slot.steady = false;
  return &slot;
}

namespace {

// The states before the segments of a layout, and those behind them.
State past_of(const Scan& part, const Stream::Slot& slot, const Layout& layout) {
  std::vector<State> past;
  for (const Segment& s : layout.segments) {
    const auto known = slot.states.find(s.document);
    past.push_back(known == slot.states.end() ? part.identity() : known->second);
  }
  return concatenate_states(past);
}
void remember(const Scan& part, Stream::Slot& slot, const Layout& layout, const State& end) {
  slot.names = part.names;
  for (size_t g = 0; g < layout.segments.size(); ++g) {
    const auto row = static_cast<int64_t>(g);
    State last;
    for (size_t i = 0; i < end.size(); ++i)
      last.push_back(part.names[i].empty() ? part.identity()[i] : slice(end[i], 0, row, row + 1));
    slot.states[layout.segments[g].document] = last;
  }
}

// Whether kernels may do it: one token more of each document, and no way back.
bool one_each(const Layout& layout, Device device) {
  return Tape::current() == nullptr && device != Device::meta && !layout.segments.empty() &&
         std::all_of(layout.segments.begin(), layout.segments.end(),
                     [](const Segment& s) { return s.size() == 1; });
}

// The named states of each document, in buffers that a step may write since nobody else holds them.
const Tensor& own_states(const Scan& part, Stream::Slot& slot, const Layout& layout, Device device) {
  slot.names = part.names;
  int columns = 0;
  for (const std::string& name : part.names) columns += name.empty() ? 0 : 1;
  std::vector<void*> addresses;
  for (const Segment& s : layout.segments) {
    State& state = slot.states[s.document];
    if (state.empty()) state = part.identity();
    for (size_t i = 0; i < state.size(); ++i) {
      if (part.names[i].empty()) continue;
      if (!state[i].value().unique() || !state[i].value().dense()) {
        const Tensor own = empty(state[i].shape(), state[i].dtype(), device);
        own.copy_from(state[i]);
        state[i] = own;
      }
      addresses.push_back(state[i].value().raw());
    }
  }
  return slot.addresses.of(addresses, columns, device);
}

}  // namespace

Variable LocalCrossing::operator()(const Scan& part, const Block& block) {
  Stream::Slot* slot = next_slot();
  CHECK(!(part.total || part.reverse) || slot == nullptr, "a bidirectional scan cannot be streamed");
  if (part.reverse) {
    const Tensor rows = turned_rows(layout(), block.x[0].device());
    Scan onwards = part;
    onwards.reverse = false;
    return gather_rows((*this)(onwards, gather_block(block, rows)), rows);
  }
  if (part.whole && slot == nullptr) return part.whole(block, layout());
  const Device device = block.x[0].device();
  if (slot != nullptr && part.step && one_each(layout(), device)) {
    slot->steady = true;
    return part.step(block, own_states(part, *slot, layout(), device));
  }
  if (part.kernel.on(computed_on(device))) {
    const Scan::Ran ran = part.kernel.run(
        block, layout(), slot == nullptr ? State{} : past_of(part, *slot, layout()), slot != nullptr);
    if (slot != nullptr) remember(part, *slot, layout(), ran.end);
    return ran.y;
  }
  const Chunks chunks = cut_chunks(layout(), part.chunk, device);
  const Block cut = into_chunks(block, chunks, part.pad);
  Folded folded = fold(part, part.summarize(cut), chunks);
  if (slot != nullptr) {
    const State initial = past_of(part, *slot, layout());
    folded.prefix = part.combine(gather_state(initial, chunks.segment), folded.prefix);
    remember(part, *slot, layout(), part.combine(initial, folded.total));
  }
  if (part.total) folded.prefix = gather_state(folded.total, chunks.segment);
  return out_of_chunks(part.apply(cut, folded.prefix), chunks);
}

namespace {

// Tells the part of the documents, if a block's tokens are those of the layout.
Merge of_whole_documents(Merge part, const Block& block, const Layout& layout) {
  if (block.position.raw() != layout.position.raw() || block.document.raw() != layout.document.raw())
    return part;
  const DocumentBounds bounds = bounds_of(layout);
  part.options.documents = bounds.documents;
  part.options.longest = static_cast<int32_t>(bounds.longest);
  return part;
}

}  // namespace

bool LocalCrossing::steps(const Merge& part, const Block& block) const {
  if (stream_ == nullptr || !one_each(layout(), block.x[0].device()) || block.x.size() != 3 ||
      part.bias.defined() || part.step.serves == nullptr ||
      !part.step.serves(part.options, block.x[0], block.x[2]))
    return false;
  const auto kept = [&](const Segment& s) -> int64_t {
    if (calls_ >= stream_->slots.size()) return 0;
    const auto& rows = stream_->slots[calls_].rows;
    const auto known = rows.find(s.document);
    return known == rows.end() ? 0 : known->second.size();
  };
  return std::all_of(layout().segments.begin(), layout().segments.end(),
                     [&](const Segment& s) { return kept(s) == s.begin; });
}

std::vector<Variable> LocalCrossing::step(const Merge& part, const Block& block, double turn) {
  Stream::Slot& slot = *next_slot();
  std::vector<void*> addresses;
  int64_t rows = 0;
  for (const Segment& s : layout().segments) {
    RowCache& cache = slot.rows[s.document];
    cache.expect(stream_->expected);
    cache.extend({block.x[1], block.x[2], block.position, block.document}, 1);
    for (int i = 0; i < 4; ++i) addresses.push_back(cache.rows(i).raw());
    rows = std::max(rows, cache.capacity());
  }
  slot.steady = true;
  const Tensor &q = block.x[0], &k = block.x[1], &v = block.x[2],
               &table = slot.addresses.of(addresses, 4, q.device());
  const std::vector<Tensor> y =
      turn > 0 ? attention_step(part.options, q, k, v, block.position, block.document, table, rows, turn)
               : part.step.run(part.options, q, k, v, block.position, block.document, table, rows);
  count_flops(
      attention_operations(part, seen_pairs(part.options, layout().segments), block.x[0], block.x[2], false));
  return {y[0], y[1]};
}

std::vector<Variable> LocalCrossing::operator()(const Merge& part, const Block& block) {
  if (steps(part, block)) return step(part, block, 0);
  Stream::Slot* slot = next_slot();
  if (slot == nullptr) {
    const Segments& all = layout().segments;
    return merge(of_whole_documents(part, block, layout()), block, block, seen_pairs(part.options, all, all));
  }
  const auto cache_of = [&](const Segment& s) -> RowCache& {
    RowCache& cache = slot->rows[s.document];
    cache.expect(stream_->expected);
    return cache;
  };
  std::vector<Variable> outputs, lses;
  int64_t at = 0;
  for (const Segment& s : layout().segments) {
    const Block query = slice_block(block, at, at + s.size());
    at += s.size();
    RowCache& cache = cache_of(s);
    cache.append({query.x[1], query.x[2], query.position, query.document});
    const Block past{{query.x[0], cache.rows(0), cache.rows(1)}, cache.rows(2), cache.rows(3)};
    const auto result = merge(part, query, past, seen_pairs(part.options, {s}));
    outputs.push_back(result[0]);
    lses.push_back(result[1]);
    if (part.options.block > 0) cache.keep_last(s.end % part.options.block);  // what later tokens can see
  }
  return {concatenate(outputs, 0), concatenate(lses, 0)};
}

namespace {

// In buffers that nobody else holds, as a copy of the stream would.
void own(Block& rows) {
  const auto copy_of = [](const Tensor& x) {
    const Tensor copy = empty_like(x);
    copy.copy_from(x);
    return copy;
  };
  for (Variable& x : rows.x)
    if (!x.value().unique()) x = copy_of(x);
  if (!rows.position.unique()) rows.position = copy_of(rows.position);
  if (!rows.document.unique()) rows.document = copy_of(rows.document);
}

// What stepped goes back to where rows are kept by document.
void put_back(const Halo& part, Stream::Slot& slot) {
  const Stream::Slot::Window window = std::exchange(slot.window, {});
  for (size_t g = 0; g < window.documents.size(); ++g) {
    const int64_t end = (static_cast<int64_t>(g) + 1) * part.width,
                  begin = end - std::min(part.width, window.seen[g]);
    slot.rows[window.documents[g]].append(values_of(slice_block(window.before, begin, end)));
  }
}

}  // namespace

// `width` rows before each segment: those kept, and rows of no document where there are none.
Block LocalCrossing::rows_before(const Halo& part, const Block& block, const Stream::Slot* slot) const {
  const Device device = block.x[0].device();
  const int64_t segments = bounds_of(layout()).documents;
  const auto nobody = [&] { return full({segments * part.width}, -1, Dtype::i32, device); };
  Block before{{}, nobody(), nobody()};
  for (const Variable& x : block.x)
    before.x.push_back(zeros(x.shape().with(0, segments * part.width), x.dtype(), device));
  if (slot == nullptr) return before;
  for (int64_t g = 0; g < segments; ++g) {
    const auto known = slot->rows.find(layout().segments[static_cast<size_t>(g)].document);
    if (known == slot->rows.end() || known->second.empty()) continue;
    const RowCache& cache = known->second;
    const int64_t end = (g + 1) * part.width, begin = end - cache.size();
    const int count = static_cast<int>(block.x.size());
    for (int i = 0; i < count; ++i) before.x[i].value().rows(begin, end).copy_from(cache.rows(i));
    before.position.rows(begin, end).copy_from(cache.rows(count));
    before.document.rows(begin, end).copy_from(cache.rows(count + 1));
  }
  return before;
}

Variable LocalCrossing::operator()(const Halo& part, const Block& block) {
  Stream::Slot* slot = next_slot();
  if (slot == nullptr) return part.apply(block, rows_before(part, block, nullptr));
  std::vector<int> documents;
  for (const Segment& s : layout().segments) documents.push_back(s.document);
  Stream::Slot::Window& window = slot->window;
  const bool step = part.width > 0 && one_each(layout(), block.x[0].device());
  if (step && window.documents == documents) {
    slot->steady = true;
  } else {
    put_back(part, *slot);
    if (step) {
      window.before = rows_before(part, block, slot);
      window.documents = documents;
      for (const Segment& s : layout().segments) {
        window.seen.push_back(s.begin);
        slot->rows.erase(s.document);
      }
    }
  }
  if (step) {
    own(window.before);
    const Variable y = part.apply(block, window.before);
    const std::vector<Tensor> to = values_of(window.before), from = values_of(block);
    for (size_t i = 0; i < to.size(); ++i) shift_window(to[i], from[i]);
    for (int64_t& n : window.seen) ++n;
    return y;
  }
  const Block before = rows_before(part, block, slot);
  int64_t at = 0;
  for (const Segment& s : layout().segments) {
    RowCache& cache = slot->rows[s.document];
    cache.append(values_of(slice_block(block, at, at + s.size())));
    cache.keep_last(part.width);
    at += s.size();
  }
  return part.apply(block, before);
}

Variable LocalCrossing::operator()(const Carry& part, const Block& block) {
  Stream::Slot* slot = next_slot();
  if (slot == nullptr && part.chunk > 0) return carry_abreast(part, block, layout());
  std::vector<Variable> outputs;
  int64_t at = 0;
  for (const Segment& s : layout().segments) {
    State state = part.start();
    if (slot != nullptr) {
      slot->names = part.names;
      if (const auto known = slot->states.find(s.document); known != slot->states.end())
        state = known->second;
    }
    auto [y, after] = part.step(slice_block(block, at, at + s.size()), state);
    at += s.size();
    outputs.push_back(y);
    if (slot != nullptr) slot->states[s.document] = after;
  }
  return outputs.empty() ? carry_nothing(part, block) : concatenate(outputs, 0);
}

Variable LocalCrossing::total(const Variable& sums) {
  Stream::Slot* slot = next_slot();
  if (slot == nullptr) return sums;
  State& past = slot->states[-1];  // of no document
  const Variable all = past.empty() ? sums : add(past[0], sums);
  past = {all};
  return all;
}

}  // namespace weft
