// Memory as context: the segments of attention are the chunks of the memory.

#include <algorithm>
#include <cmath>

#include "attention/chunks.h"
#include "attention/initialize.h"
#include "attention/naive.h"
#include "attention/titans_layers.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
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

// Over the persistent tokens and, of `before` tokens of the segment and the n of the queries, those up to the
// own. q (n, H, k), keys and values (2, before + n, H, ...), all wide -> (n, H v)
Variable MemoryAsContext::attend(const Variable& q, const Variable& keys, const Variable& values,
                                 int64_t before) const {
  const Dtype type = q.dtype();
  const int64_t n = q.dim(0), seen = before + n, h = dims().heads;
  const Variable queries = scale(permute(q, {1, 0, 2}), score_scale());
  std::vector<Variable> scores, answers;
  const auto meet = [&](const Variable& k, const Variable& v, bool causal) {  // (m, H, ...)
    const Variable s = matmul(queries, permute(k, {1, 0, 2}), {false, true});
    scores.push_back(causal ? lower_triangle(s, before, -INFINITY) : s);
    answers.push_back(permute(v, {1, 0, 2}));
  };
  const std::vector<Variable> persistent = persistent_inputs();
  meet(cast(persistent[0], type), cast(persistent[1], type), false);
  for (int64_t i = 0; i < 2; ++i)
    meet(reshape(slice(keys, 0, i, i + 1), {seen, h, dims().key}),
         reshape(slice(values, 0, i, i + 1), {seen, h, dims().value}), true);
  const Variable y = matmul(softmax(concatenate(scores, 2)), concatenate(answers, 1));
  return reshape(permute(y, {1, 0, 2}), {n, h * dims().value});
}

std::pair<Variable, State> MemoryAsContext::step_in_segment(const Block& block, const State& state) const {
  const Variable& x = block.x[0];
  const int64_t n = x.dim(0), h = dims().heads, chunk = config_.chunk;
  const Dtype type = state[0].dtype();
  const State memory(state.begin(), state.end() - 2);
  const int64_t before = chunk - memory_.memory().room(memory);

  // The open segment with the new tokens behind it: pairs of what is recalled for a token and the token.
  const Variable query = memory_inputs(x, block.position, block.document).x[0];
  const Variable recalled = linear(answered(memory_.recall(memory, query)), recalled_out_);
  const std::vector<Variable> of_recalled = attention_inputs(recalled), of_x = attention_inputs(x);
  const auto grown = [&](const Variable& kept, size_t which) {
    const Shape one{1, n, h, of_x[which].dim(2)};
    const Variable fresh =
        concatenate({reshape(cast(of_recalled[which], type), one), reshape(cast(of_x[which], type), one)}, 0);
    return before == 0 ? fresh : concatenate({slice(kept, 1, 0, before), fresh}, 1);
  };
  const Variable keys = grown(state[state.size() - 2], 1), values = grown(state.back(), 2);
  const Variable y = cast(attend(cast(of_x[0], type), keys, values, before), x.dtype());

  const Block learned = memory_inputs(linear(y, attention_out_), block.position, block.document);
  auto [m, after] = memory_.carry(x.dtype(), x.device()).step(learned, memory);
  const Variable out = gated(y, m);

  for (const Variable& rows : {keys, values}) {
    const int64_t rest = chunk - before - n, kept = rest == 0 ? 0 : before + n;
    const Variable empty = zeros({2, chunk - kept, h, rows.dim(3)}, type, x.device());
    after.push_back(kept == 0 ? empty : concatenate({rows, empty}, 1));
  }
  return {out, after};
}

Variable MemoryAsContext::forward(const Block& block, Crossing& cross) const {
  const Dtype dtype = block.x[0].dtype(), type = wide_of(dtype);
  const Device device = block.x[0].device();
  const Carry memory = memory_.carry(dtype, device);
  Carry carry;
  carry.names = memory.names;
  carry.names.insert(carry.names.end(), {"keys", "values"});
  carry.start = [this, memory, type, device] {
    State state = memory.start();
    for (const int64_t size : {dims().key, dims().value})
      state.push_back(zeros({2, config_.chunk, dims().heads, size}, type, device));
    return state;
  };
  carry.step = [this](const Block& b, const State& state) {
    State now = state;
    std::vector<Variable> outputs;
    for (int64_t at = 0; at < b.x[0].dim(0);) {
      const int64_t room = memory_.memory().room({now.begin(), now.end() - 2});
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
  std::vector<Variable> keys, values, outputs;
  for (int64_t t = 0; t < block.x[0].dim(0); ++t) {
    if (t % config_.chunk == 0) {
      keys = {persistent[0]};
      values = {persistent[1]};
    }
    const Block token = slice_block(block, t, t + 1);
    const Variable query = memory_inputs(token.x[0], token.position, token.document).x[0];
    const Variable recalled = linear(naive_answered(memory_.naive_recall(memory, query)), recalled_out_);
    for (const Variable& context : {recalled, token.x[0]}) {
      const std::vector<Variable> qkv = attention_inputs(context);
      keys.push_back(qkv[1]);
      values.push_back(qkv[2]);
    }
    const Variable k = concatenate(keys, 0);
    const Variable y = reshape(naive_attention(attention_inputs(token.x[0])[0], k, concatenate(values, 0),
                                               zeros({h, 1, k.dim(0)}, dtype), score_scale()),
                               {1, size});
    const Variable m =
        memory_.naive_learn(memory, memory_inputs(linear(y, attention_out_), token.position, token.document));
    outputs.push_back(naive_gated(y, m));
  }
  return concatenate(outputs, 0);
}

}  // namespace weft
