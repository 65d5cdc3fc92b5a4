#include "attention/memory.h"

#include <algorithm>
#include <utility>

#include "attention/memory_ops.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"

namespace weft {
namespace {

// A slice of the first dimension, of something that may not be there.
Variable rows_of(const Variable& x, int64_t begin, int64_t end) {
  return x.defined() ? slice(x, 0, begin, end) : x;
}

// One after another; a single one is itself.
Variable together(const std::vector<Variable>& parts) {
  return parts.size() == 1 ? parts[0] : concatenate(parts, 0);
}

}  // namespace

Variable Retention::weights(const Variable& a) const {
  if (scale) return multiply(a, scale(a));
  return map ? map(a) : a;
}

std::vector<std::string> ChunkedMemory::names() const {
  const std::vector<std::string>& weights = policy_.memory.names;
  std::vector<std::string> out = weights;
  if (policy_.momentum)  // M has S, W1 has S1
    for (const std::string& w : weights) out.push_back("S" + w.substr(1));
  for (const std::string& w : weights) out.push_back("start." + w);
  out.push_back("place");
  return out;
}

State ChunkedMemory::start(const State& a) const {
  State state = a;
  if (policy_.momentum)
    for (const Variable& w : a) state.push_back(zeros(w.shape(), w.dtype(), w.device()));
  state.insert(state.end(), a.begin(), a.end());
  state.push_back(zeros({1}, a[0].dtype(), a[0].device()));
  return state;
}

int64_t ChunkedMemory::place(const State& state) const {
  const Tensor& place = state.back();
  if (place.device() == Device::meta) return 0;
  return std::clamp<int64_t>(static_cast<int64_t>(to_values(place)[0]), 0, chunk_ - 1);
}

std::vector<ChunkedMemory::Cut> ChunkedMemory::cuts(int64_t place, int64_t tokens) const {
  std::vector<Cut> out;
  int64_t at = 0;
  if (place > 0 && tokens > 0) {
    at = std::min(tokens, chunk_ - place);
    out.push_back({0, at, 1, place});
  }
  if (const int64_t whole = (tokens - at) / chunk_; whole > 0) {
    out.push_back({at, chunk_, whole, 0});
    at += whole * chunk_;
  }
  if (at < tokens) out.push_back({at, tokens - at, 1, 0});
  return out;
}

State ChunkedMemory::at_start(const State& state, int64_t place) const {
  const auto count = static_cast<std::ptrdiff_t>(policy_.memory.names.size());
  const auto from = place == 0 ? state.begin() : state.end() - 1 - count;
  return {from, from + count};
}

State ChunkedMemory::weights_of(const State& a) const {
  State weights;
  for (const Variable& w : a) weights.push_back(policy_.retention.weights(w));
  return weights;
}

Variable ChunkedMemory::recall(const State& state, int64_t place, const Variable& x) const {
  return answer(weights_of(at_start(state, place)), x);
}

Variable ChunkedMemory::answer(const State& weights, const Variable& x) const {
  return policy_.memory.answer([&](size_t i, const Variable& rows) { return matmul(rows, weights[i]); }, x);
}

State ChunkedMemory::end_of(State a, const State& s, const State& start, int64_t reached) const {
  const Variable place = full({a[0].dim(0) / policy_.memory.shapes[0][0]}, static_cast<double>(reached),
                              a[0].dtype(), a[0].device());
  State end = std::move(a);
  end.insert(end.end(), s.begin(), s.end());
  end.insert(end.end(), start.begin(), start.end());
  end.push_back(place);
  return end;
}

// What depends on the state is done chunk by chunk: gradients and weights. Coefficients and answers are those
// of all chunks at once, as if they were heads.
std::pair<Variable, State> ChunkedMemory::learn(const MemoryTokens& tokens, int64_t chunks, int64_t place,
                                                const State& state) const {
  const Memory& memory = policy_.memory;
  const Retention& retention = policy_.retention;
  const size_t count = memory.names.size();
  const int64_t n = tokens.k.dim(1), heads = tokens.k.dim(0) / chunks;
  const bool closes = place + n == chunk_;
  CHECK(place + n <= chunk_ && (chunks == 1 || closes) && state[0].dim(0) == heads, "memory: ", chunks,
        " chunks of ", n, " tokens from ", place, " of ", chunk_, ", state ", state[0].shape());
  const LearningCoefficients c = learning_coefficients(tokens.step, tokens.keep, tokens.momentum);
  const int64_t reached = closes ? 0 : place + n;
  if (place == 0 && policy_.matrix()) {
    const MatrixLearning m = learn_matrix(state[0], state[1], tokens.k, tokens.v, c.last, chunks);
    const Variable y = read_while_learning(tokens.q, m.before_a, m.before_s, tokens.k, m.error, c);
    return {y, end_of({m.a}, {m.s}, {closes ? m.a : state[0]}, reached)};
  }

  State a(state.begin(), state.begin() + static_cast<std::ptrdiff_t>(count)), s,
      start = at_start(state, place);
  for (size_t i = 0; policy_.momentum && i < count; ++i) s.push_back(state[count + i]);
  // Of each weight, chunk by chunk.
  std::vector<std::vector<Variable>> before_a(count), before_s(count), after_a(count), starts(count),
      in(count), out(count);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const auto own = [&](const Variable& x) {
      return chunks == 1 ? x : rows_of(x, chunk * heads, (chunk + 1) * heads);
    };
    const Variable bound = own(tokens.bound), last = own(c.last);
    const std::vector<OuterProducts> gradient =
        memory.gradient(weights_of(start), own(tokens.k), own(tokens.v),
                        [&](const Variable& error) { return policy_.bias.slope(error, bound); });
    for (size_t i = 0; i < count; ++i) {
      before_a[i].push_back(a[i]);
      starts[i].push_back(start[i]);
      in[i].push_back(gradient[i].in);
      out[i].push_back(gradient[i].out);
      if (policy_.momentum) before_s[i].push_back(s[i]);
      const std::vector<Variable> moved =
          after_learning(a[i], policy_.momentum ? s[i] : Variable(), gradient[i].in, gradient[i].out, last);
      a[i] = moved[0];
      if (policy_.momentum) s[i] = moved[1];
      after_a[i].push_back(a[i]);
    }
    if (closes) start = a;
  }

  const bool bent = retention.scale || retention.map;
  const Weigh moving = [&](size_t i, const Variable& x) {
    if (retention.map) return matmul(x, retention.map(together(starts[i])));
    const Variable y =
        read_while_learning(x, together(before_a[i]), policy_.momentum ? together(before_s[i]) : Variable(),
                            i == 0 ? tokens.k : together(in[i]), together(out[i]), c);
    return retention.scale ? multiply(y, retention.scale(together(starts[i]))) : y;
  };
  Variable y = memory.answer(moving, tokens.q);
  if (closes && bent) {
    State after;
    for (size_t i = 0; i < count; ++i) after.push_back(together(after_a[i]));
    const Variable last = answer(weights_of(after), slice(tokens.q, 1, n - 1, n));
    y = n == 1 ? last : concatenate({slice(y, 1, 0, n - 1), last}, 1);
  }

  return {y, end_of(a, s, start, reached)};
}

}  // namespace weft
