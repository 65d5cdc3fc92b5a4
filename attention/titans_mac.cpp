// Memory as context: the segments of attention are the chunks of the memory. One segment waits for the one
// before, since what the memory learns is what attention gave. So all that does not wait is done for all
// segments at once: what is asked, queries, keys and values of the text, and attention to the text and the
// persistent tokens, which merges with that to what is recalled.

#include "attention/chunks.h"
#include "attention/initialize.h"
#include "attention/memory_ops.h"
#include "attention/merge.h"
#include "attention/merge_partials.h"
#include "attention/naive.h"
#include "attention/short_convolution.h"
#include "attention/softmax.h"
#include "attention/titans_layers.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/head_linear.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/short_conv.h"

namespace weft {
MemoryAsContext::MemoryAsContext(const Config& config, const Dimensions& sizes, const ParameterScope& scope)
    : TitansLayer(config, sizes, Attended::tokens, true, scope) {
  const int64_t c = dims().width, v = dims().heads * dims().value;
  const auto to_width = [&](const char* name) {
    return scope.declare({name, {c, v}, ParameterKind::matrix, projection_init(v)});
  };
  recalled_out_ = to_width("recalled.weight");
  attention_out_ = to_width("attention.out.weight");
}

State MemoryAsContext::memory_part(const State& state) const {
  return {state.begin(), state.end() - (convolves() ? 4 : 2)};
}

std::pair<Variable, Variable> MemoryAsContext::convolved(const Variable& rows, const Variable& filter,
                                                         const Variable& kept, const Tensor& places,
                                                         int64_t documents) const {
  const int64_t n = rows.dim(0) / documents, width = rows.dim(1), line = reach() + n;
  const Variable before = reshape(cast(kept, rows.dtype()), {documents, reach(), width});
  const Variable all = concatenate({before, reshape(rows, {documents, n, width})}, 1);
  const Variable y = short_conv(reshape(all, {documents * line, width}), filter, {}, places);
  const Variable last = slice(all, 1, n, line);
  return {reshape(y, {documents, line, width}), reshape(last, {documents * reach(), width})};
}

// Rows stand segment by segment, in each document by document: S B n of them.
struct MemoryAsContext::Segments {
  Variable asked;          // (S B H, n, k)
  Variable q;              // turned, (S B n, H, k)
  Variable o, lse;         // attention to the text and the persistent tokens
  Variable keys, values;   // of the text, turned, (S B n, H, ...)
  Variable asked_tail;     // what the convolution of later ones reads
  Tensor place, document;  // (B n), of the rows of one segment: in it, and of the documents abreast
};

namespace {

// 0 ... n - 1, so many times.
Tensor counted(int64_t n, int64_t times, Device device) {
  std::vector<int32_t> out;
  for (int64_t i = 0; i < n * times; ++i) out.push_back(static_cast<int32_t>(i % n));
  return from_ints(out, device);
}

// Tokens [begin, end) of each of B documents, (B T, ...).
Variable rows_between(const Variable& x, int64_t documents, int64_t begin, int64_t end) {
  const int64_t tokens = x.dim(0) / documents;
  if (begin == 0 && end == tokens) return x;
  const int64_t width = x.numel() / x.dim(0);
  const Variable rows = slice(reshape(x, {documents, tokens, width}), 1, begin, end);
  return reshape(rows, x.shape().with(0, documents * (end - begin)));
}

// Rows (A B n, C) to (B A n, C).
Variable swapped(const Variable& x, int64_t a, int64_t b) {
  if (a == 1 || b == 1) return x;
  const int64_t n = x.dim(0) / (a * b), width = x.numel() / x.dim(0);
  return reshape(permute(reshape(x, {a, b, n, width}), {1, 0, 2, 3}), x.shape());
}

// Queries and keys that meet in so many segments of n tokens behind `before` kept ones.
double pairs_in(int64_t segments, int64_t n, int64_t before) {
  return static_cast<double>(segments * n) * (static_cast<double>(before) + 0.5 * static_cast<double>(n + 1));
}

}  // namespace

MemoryAsContext::Segments MemoryAsContext::segments_of(const Block& block, const ChunkedMemory::Cut& cut,
                                                       const State& state) const {
  const size_t own = memory_part(state).size();
  const int64_t documents = state[own - 1].dim(0), count = cut.chunks, n = cut.size, before = cut.place;
  const int64_t h = dims().heads, rows = count * documents * n, width = h * dims().key;
  const Variable x =
      rows_between(block.x[0], documents, cut.begin, cut.begin + count * n);  // document by document
  const Device device = x.device();
  const Dtype type = state[0].dtype();
  Segments out;

  Variable asked = reshape(linear_to_heads(x, memory_in_, 0, width, all_heads(rows, 1)), {rows, width});
  if (convolves()) {
    auto [line, kept] = convolved(asked, slice(convolution_, 0, 0, width), state[own + 2],
                                  counted(reach() + count * n, documents, device), documents);
    asked = reshape(slice(line, 1, reach(), line.dim(1)), {rows, width});
    out.asked_tail = cast(kept, type);
  }
  const Variable by_head =
      permute(reshape(cast(directions(asked), type), {documents, count, n, h, dims().key}), {1, 0, 3, 2, 4});
  out.asked = reshape(by_head, {count * documents * h, n, dims().key});

  // Which segment and document a row is of, and its place there, which nothing looks out of.
  std::vector<int32_t> text, places, kept_text, kept_places;
  for (int64_t i = 0; i < rows; ++i) {
    text.push_back(static_cast<int32_t>(i / n));
    places.push_back(static_cast<int32_t>(before + i % n));
  }
  for (int64_t i = 0; i < documents * before; ++i) {
    kept_text.push_back(static_cast<int32_t>(i / before));
    kept_places.push_back(static_cast<int32_t>(i % before));
  }
  const Tensor at = from_ints(places, device), of = from_ints(text, device);
  out.place = at.rows(0, documents * n);
  out.document = of.rows(0, documents * n);
  const std::vector<Variable> of_x = attention_inputs(swapped(x, documents, count));
  out.q = turned(of_x[0], at);
  out.keys = turned(of_x[1], at);
  out.values = of_x[2];
  Block keys{{{}, out.keys, out.values}, at, of};
  if (before > 0) {
    // Of each document those of the text that are kept.
    const auto joined = [&](const Variable& kept, const Variable& fresh) {
      const Variable mine = slice(reshape(kept, {documents, 2, config_.chunk, h * fresh.dim(2)}), 1, 1, 2);
      const Variable there = slice(reshape(mine, {documents, config_.chunk, h * fresh.dim(2)}), 1, 0, before);
      return concatenate(
          {reshape(cast(there, fresh.dtype()), fresh.shape().with(0, documents * before)), fresh}, 0);
    };
    keys.x[1] = joined(state[own], out.keys);
    keys.x[2] = joined(state[own + 1], out.values);
    const Tensor kept_at = from_ints(kept_places, device), kept_of = from_ints(kept_text, device);
    keys.position = concatenate({kept_at, at}, 0).value();
    keys.document = concatenate({kept_of, of}, 0).value();
  }
  AttentionOptions options{.scale = score_scale()};
  const auto near = merge(softmax_merge(options), {{out.q}, at, of}, keys, pairs_in(rows / n, n, before));
  // Persistent tokens have no place: everybody sees them, by queries that are not turned.
  const std::vector<Variable> persistent = persistent_inputs();
  options.causal = false;
  const auto one = [&](int64_t size) {
    return from_ints(std::vector<int32_t>(static_cast<size_t>(size), 0), device);
  };
  const Tensor everywhere = one(rows), always = one(config_.persistent);
  const auto known = merge(softmax_merge(options), {{of_x[0]}, everywhere, everywhere},
                           {{{}, persistent[0], persistent[1]}, always, always},
                           static_cast<double>(rows * config_.persistent));
  const auto both = merge_partials(near[0], near[1], known[0], known[1]);
  out.o = both[0];
  out.lse = both[1];
  return out;
}

std::pair<Variable, State> MemoryAsContext::step_in_segments(const Block& block,
                                                             const ChunkedMemory::Cut& cut,
                                                             const State& state) const {
  const ChunkedMemory& learning = memory_.memory();
  State memory = memory_part(state);
  const size_t own = memory.size();  // where what is no memory begins
  const int64_t documents = memory.back().dim(0), n = cut.size, before = cut.place, h = dims().heads;
  const int64_t key = dims().key, value = dims().value, rows = documents * n;
  const Dtype dtype = block.x[0].dtype(), type = state[0].dtype();
  const Segments all = segments_of(block, cut, state);
  const Merge attention = softmax_merge({.scale = score_scale()});
  const MemoryTokenSizes sizes{documents, reach(), h, key, value};

  const Tensor line_places = counted(reach() + n, documents, block.x[0].device());
  Variable tail = convolves() ? cast(state[own + 3], dtype) : Variable();
  Variable recalled_keys, recalled_values;  // of the last segment
  std::vector<Variable> attended, answers;
  const std::vector<Variable> asked = split_rows(all.asked, cut.chunks), q = split_rows(all.q, cut.chunks),
                              o = split_rows(all.o, cut.chunks), lse = split_rows(all.lse, cut.chunks);
  const Variable recalled_out = gathered(recalled_out_), attention_out = gathered(attention_out_),
                 memory_in = gathered(memory_in_), memory_gate = gathered(memory_gate_);
  // Keys and values alone: nobody asks by what is recalled.
  const Variable pairs_of = gathered(attention_in_, h * key, h * (2 * key + value));
  for (int64_t s = 0; s < cut.chunks; ++s) {
    const Variable m = learning.recall(memory, before, asked[s]);
    const Variable recalled =
        linear(answered(reshape(heads_together(m, documents, dtype), {rows, h, value})), recalled_out);
    const std::vector<Variable> parts =
        split_columns(linear(recalled, pairs_of), std::vector<Shape>{{rows, h, key}, {rows, h, value}});
    recalled_keys = turned(parts[0], all.place);
    recalled_values = parts[1];
    Block keys{{{}, recalled_keys, recalled_values}, all.place, all.document};
    if (before > 0) {
      // Behind those kept of the open segment, document by document.
      const auto grown = [&](const Variable& kept, const Variable& fresh) {
        const int64_t width = h * fresh.dim(2);
        const Variable mine = slice(reshape(kept, {documents, 2 * config_.chunk, width}), 1, 0, before);
        const Variable line = concatenate({cast(mine, dtype), reshape(fresh, {documents, n, width})}, 1);
        return reshape(line, {documents * (before + n), h, fresh.dim(2)});
      };
      std::vector<int32_t> places, texts;
      for (int64_t i = 0; i < documents * (before + n); ++i) {
        places.push_back(static_cast<int32_t>(i % (before + n)));
        texts.push_back(static_cast<int32_t>(i / (before + n)));
      }
      keys = {{{}, grown(state[own], recalled_keys), grown(state[own + 1], recalled_values)},
              from_ints(places, block.x[0].device()),
              from_ints(texts, block.x[0].device())};
    }
    const auto past =
        merge(attention, {{q[s]}, all.place, all.document}, keys, pairs_in(documents, n, before));
    const Variable y = merge_partials(o[s], lse[s], past[0], past[1])[0];
    attended.push_back(reshape(y, {rows, h * value}));

    const Variable learned = linear(attended.back(), attention_out);
    Variable line = linear(learned, memory_in);
    if (convolves()) {
      auto [convolution, kept] = convolved(line, convolution_, tail, line_places, documents);
      line = reshape(convolution, {documents * (reach() + n), line.dim(1)});
      tail = kept;
    }
    const std::vector<Variable> t = memory_tokens(line, linear(learned, memory_gate, memory_bias_), sizes);
    auto [answer, after] =
        learning.learn({t[0], t[1], t[2], memory_.limited(t[3], t[4]), t[5], t[4], {}}, 1, before, memory);
    answers.push_back(answer);
    memory = after;
  }

  const Variable y = concatenate(attended, 0), m = concatenate(answers, 0);
  const Variable out =
      gated(y, reshape(heads_together(m, cut.chunks * documents, dtype), {cut.chunks * rows, h, value}));

  State after = memory;
  const bool open = before + n < config_.chunk;
  const auto kept = [&](const Variable& past, const Variable& recalled, const Variable& fresh) {
    const int64_t width = h * recalled.dim(2), seen = before + n;
    const Shape shape{documents * 2, config_.chunk, h, recalled.dim(2)};
    if (!open) return Variable(zeros(shape, type, y.device()));
    std::vector<Variable> line;
    if (before > 0) line.push_back(slice(reshape(past, {documents * 2, config_.chunk, width}), 1, 0, before));
    // Of each document what was recalled, then the text.
    const Shape one{documents, 1, n, width};
    line.push_back(
        reshape(concatenate({reshape(cast(recalled, type), one), reshape(cast(fresh, type), one)}, 1),
                {documents * 2, n, width}));
    line.push_back(zeros({documents * 2, config_.chunk - seen, width}, type, y.device()));
    return reshape(concatenate(line, 1), shape);
  };
  after.push_back(kept(state[own], recalled_keys, all.keys));
  after.push_back(kept(state[own + 1], recalled_values, all.values));
  if (convolves()) {
    after.push_back(all.asked_tail);
    after.push_back(cast(tail, type));
  }
  return {swapped(out, cut.chunks, documents), after};
}

Variable MemoryAsContext::forward(const Block& block, Crossing& cross) const {
  const Dtype dtype = block.x[0].dtype(), type = wide_of(dtype);
  const Device device = block.x[0].device();
  const Carry memory = memory_.carry(dtype, device);
  Carry carry;
  carry.names = memory.names;
  carry.names.insert(carry.names.end(), {"keys", "values"});
  if (convolves()) carry.names.insert(carry.names.end(), {"conv.asked", "conv.learned"});
  carry.start = [this, memory, type, device] {
    State state = memory.start();
    for (const int64_t size : {dims().key, dims().value})
      state.push_back(zeros({2, config_.chunk, dims().heads, size}, type, device));
    const int64_t k = dims().heads * dims().key, v = dims().heads * dims().value;
    if (convolves())
      for (const int64_t columns : {k, 2 * k + v})
        state.push_back(zeros({config_.convolution - 1, columns}, type, device));
    return state;
  };
  carry.chunk = config_.chunk;
  carry.step = [this](const Block& b, const State& state) {
    const State memory = memory_part(state);
    const int64_t documents = memory.back().dim(0), tokens = b.x[0].dim(0) / documents;
    State now = state;
    std::vector<Variable> outputs;
    for (const ChunkedMemory::Cut& cut : memory_.memory().cuts(memory_.memory().place(memory), tokens)) {
      auto [y, after] = step_in_segments(b, cut, now);
      outputs.push_back(reshape(y, {documents, cut.chunks * cut.size, y.dim(1)}));
      now = after;
    }
    const Variable y = outputs.size() == 1 ? outputs[0] : concatenate(outputs, 1);
    return std::pair{reshape(y, {b.x[0].dim(0), y.dim(2)}), now};
  };
  return cross(carry, block);
}

// Token by token: what is recalled, one row of attention, one step of the memory.
Variable MemoryAsContext::reference(const Block& block) const {
  const int64_t h = dims().heads, size = h * dims().value;
  const Dtype dtype = block.x[0].dtype();
  MemoryAttention::Naive memory = memory_.naive_begin(dtype, block.x[0].device());
  const std::vector<Variable> persistent = persistent_inputs();
  const Variable asked = naive_memory_block(block).x[0];
  std::vector<Variable> keys, values, projected, outputs;
  for (int64_t t = 0; t < block.x[0].dim(0); ++t) {
    if (t % config_.chunk == 0) {
      keys = {naive_persistent_key(persistent[0])};
      values = {persistent[1]};
    }
    const Block token = slice_block(block, t, t + 1);
    const Variable recalled =
        linear(naive_answered(memory_.naive_recall(memory, slice(asked, 0, t, t + 1))), recalled_out_);
    for (const Variable& context : {recalled, token.x[0]}) {
      const std::vector<Variable> qkv = attention_inputs(context);
      keys.push_back(naive_text_key(qkv[1], t));
      values.push_back(qkv[2]);
    }
    const Variable k = concatenate(keys, 0);
    const Variable y =
        reshape(naive_attention(naive_query(attention_inputs(token.x[0])[0], t), k, concatenate(values, 0),
                                zeros({h, 1, k.dim(0)}, dtype), score_scale()),
                {1, size});
    const Variable learned = linear(y, attention_out_);
    projected.push_back(packed(learned));
    Variable rows = projected.back();
    if (convolves()) {
      // As many as the filter reads.
      if (static_cast<int64_t>(projected.size()) > config_.convolution) projected.erase(projected.begin());
      const Variable all = naive_short_convolution(concatenate(projected, 0), convolution_);
      rows = slice(all, 0, all.dim(0) - 1, all.dim(0));
    }
    const Variable m =
        memory_.naive_learn(memory, memory_inputs(rows, learned, token.position, token.document));
    outputs.push_back(naive_gated(y, m));
  }
  return concatenate(outputs, 0);
}

}  // namespace weft
