// Memory as context: the segments of attention are the chunks of the memory.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "attention/chunks.h"
#include "attention/initialize.h"
#include "attention/naive.h"
#include "attention/short_convolution.h"
#include "attention/titans_layers.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/head_linear.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/short_conv.h"
#include "autograd/ops/softmax.h"
#include "autograd/ops/triangle.h"

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
                                                         const Variable& kept) const {
  // As if far from the start of the document: what lies before it is zeros that are kept.
  const std::vector<int32_t> far(static_cast<size_t>(rows.dim(0)), static_cast<int32_t>(kept.dim(0)));
  const Tensor position = from_ints(far, rows.device());
  const Variable before = cast(kept, rows.dtype()), line = concatenate({before, rows}, 0);
  return {short_conv(rows, filter, {}, position, before),
          cast(slice(line, 0, rows.dim(0), line.dim(0)), kept.dtype())};
}

// Over the persistent tokens and, of `before` tokens of the segment and the n of the queries, those up to the
// own. q, plain and turned (n, H, k), keys, turned, and values (2, before + n, H, ...), all wide -> (n, H v)
Variable MemoryAsContext::attend(const Variable& q, const Variable& turned, const Variable& keys,
                                 const Variable& values, int64_t before) const {
  const Dtype type = q.dtype();
  const int64_t n = q.dim(0), seen = before + n, h = dims().heads;
  std::vector<Variable> scores, answers;
  const auto meet = [&](const Variable& q, const Variable& k, const Variable& v,
                        bool causal) {  // (m, H, ...)
    const Variable queries = scale(permute(q, {1, 0, 2}), score_scale());
    const Variable s = matmul(queries, permute(k, {1, 0, 2}), {false, true});
    scores.push_back(causal ? lower_triangle(s, before, -INFINITY) : s);
    answers.push_back(permute(v, {1, 0, 2}));
  };
  const std::vector<Variable> persistent = persistent_inputs();
  meet(q, cast(persistent[0], type), cast(persistent[1], type), false);
  for (int64_t i = 0; i < 2; ++i)
    meet(turned, reshape(slice(keys, 0, i, i + 1), {seen, h, dims().key}),
         reshape(slice(values, 0, i, i + 1), {seen, h, dims().value}), true);
  const Variable y = matmul(softmax(concatenate(scores, 2)), concatenate(answers, 1));
  return reshape(permute(y, {1, 0, 2}), {n, h * dims().value});
}

std::pair<Variable, State> MemoryAsContext::step_in_segment(const Block& block, const State& state) const {
  const Variable& x = block.x[0];
  const int64_t n = x.dim(0), h = dims().heads, chunk = config_.chunk, width = h * dims().key;
  const Dtype type = state[0].dtype();
  const State memory = memory_part(state);
  const size_t own = memory.size();  // where what is no memory begins
  const int64_t before = chunk - memory_.memory().room(memory);
  // Places in the segment, which nothing looks out of.
  std::vector<int32_t> places(static_cast<size_t>(n));
  std::iota(places.begin(), places.end(), static_cast<int32_t>(before));
  const Tensor place = from_ints(places, x.device());
  State tails;

  // The open segment with the new tokens behind it: pairs of what is recalled for a token and the token.
  Variable asked = reshape(linear_to_heads(x, memory_in_, 0, width, all_heads(n, 1)), {n, width});
  if (convolves()) {
    auto [rows, kept] = convolved(asked, slice(convolution_, 0, 0, width), state[own + 2]);
    asked = rows;
    tails.push_back(kept);
  }
  const Variable recalled = linear(answered(memory_.recall(memory, directions(asked))), recalled_out_);
  std::vector<Variable> of_recalled = attention_inputs(recalled), of_x = attention_inputs(x);
  for (std::vector<Variable>* of : {&of_recalled, &of_x}) (*of)[1] = turned((*of)[1], place);
  const auto grown = [&](const Variable& kept, size_t which) {
    const Shape one{1, n, h, of_x[which].dim(2)};
    const Variable fresh =
        concatenate({reshape(cast(of_recalled[which], type), one), reshape(cast(of_x[which], type), one)}, 0);
    return before == 0 ? fresh : concatenate({slice(kept, 1, 0, before), fresh}, 1);
  };
  const Variable keys = grown(state[own], 1), values = grown(state[own + 1], 2);
  const Variable y =
      cast(attend(cast(of_x[0], type), cast(turned(of_x[0], place), type), keys, values, before), x.dtype());

  const Variable learned = linear(y, attention_out_);
  Variable rows = packed(learned);
  if (convolves()) {
    auto [after, kept] = convolved(rows, convolution_, state[own + 3]);
    rows = after;
    tails.push_back(kept);
  }
  auto [m, after] = memory_.carry(x.dtype(), x.device())
                        .step(memory_inputs(rows, learned, block.position, block.document), memory);
  const Variable out = gated(y, m);

  for (const Variable& rows : {keys, values}) {
    const int64_t rest = chunk - before - n, kept = rest == 0 ? 0 : before + n;
    const Variable empty = zeros({2, chunk - kept, h, rows.dim(3)}, type, x.device());
    after.push_back(kept == 0 ? empty : concatenate({rows, empty}, 1));
  }
  after.insert(after.end(), tails.begin(), tails.end());
  return {out, after};
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
  carry.step = [this](const Block& b, const State& state) {
    State now = state;
    std::vector<Variable> outputs;
    for (int64_t at = 0; at < b.x[0].dim(0);) {
      const int64_t room = memory_.memory().room(memory_part(now));
      const int64_t end = std::min(b.x[0].dim(0), at + room);
      auto [y, after] = step_in_segment(slice_block(b, at, end), now);
      outputs.push_back(y);
      now = after;
      at = end;
    }
    return std::pair{concatenate(outputs, 0), now};
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
