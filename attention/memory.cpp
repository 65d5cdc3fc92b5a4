#include "attention/memory.h"

#include <algorithm>
#include <utility>

#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/planned_device.h"

namespace weft {
namespace {

// The first dimension in this many parts, of something that may not be there.
std::vector<Variable> parts_of(const Variable& x, int64_t count) {
  if (count == 1 || !x.defined()) return std::vector<Variable>(static_cast<size_t>(count), x);
  return split_rows(x, count);
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

Variable Retention::made_of(const Variable& a) const {
  if (scale) return scale(a);
  return map ? map(a) : Variable();
}

Variable Retention::times(const Variable& x, const Variable& a, const Variable& made, bool transposed) const {
  const Variable y = matmul(x, map ? made : a, {false, transposed});
  return scale ? multiply(y, made) : y;
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

State ChunkedMemory::made_of(const State& a) const {
  State made;
  for (const Variable& w : a) made.push_back(policy_.retention.made_of(w));
  return made;
}

Variable ChunkedMemory::recall(const State& state, int64_t place, const Variable& x) const {
  const State a = at_start(state, place), made = made_of(a);
  return policy_.memory.answer(
      [&](size_t i, const Variable& rows) { return policy_.retention.times(rows, a[i], made[i], false); }, x);
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

// Of each weight, chunk by chunk: A and S before it, the gradients, and what is made of A at its start and,
// where it ends with these tokens, behind it.
struct ChunkedMemory::Read {
  explicit Read(size_t weights)
      : before_a(weights), before_s(weights), in(weights), out(weights), made(weights), next(weights) {}
  std::vector<std::vector<Variable>> before_a, before_s, in, out, made, next;
};

Variable ChunkedMemory::answer(const Read& read, const Variable& q, const Variable& k,
                               const LearningCoefficients& c) const {
  const Retention& retention = policy_.retention;
  const int64_t n = q.dim(1);
  const bool closes = !read.next[0].empty();
  const Weigh moving = [&](size_t i, const Variable& x) {
    if (retention.map) return matmul(x, together(read.made[i]));
    const Variable y = read_while_learning(x, together(read.before_a[i]),
                                           policy_.momentum ? together(read.before_s[i]) : Variable(),
                                           i == 0 ? k : together(read.in[i]), together(read.out[i]), c);
    if (!retention.scale) return y;
    const Variable own = together(read.made[i]);
    if (!closes) return multiply(y, own);
    const Variable last = together(read.next[i]);
    if (n == 1) return multiply(y, last);
    const Variable ones = full({q.dim(0), n - 1, 1}, 1, y.dtype(), y.device());
    return multiply(y, concatenate({multiply(ones, own), last}, 1));
  };
  const Variable y = policy_.memory.answer(moving, q);
  if (!retention.map || !closes) return y;
  const Variable last = policy_.memory.answer(
      [&](size_t i, const Variable& x) { return matmul(x, together(read.next[i])); }, slice(q, 1, n - 1, n));
  return n == 1 ? last : concatenate({slice(y, 1, 0, n - 1), last}, 1);
}

// A GPU waits for launches: all answers at once. A CPU reads a chunk's weights while they are in its cache.
std::pair<Variable, State> ChunkedMemory::learn(const MemoryTokens& tokens, int64_t chunks, int64_t place,
                                                const State& state) const {
  const int64_t groups = computed_on(tokens.k.device()) == Device::cpu ? chunks : 1;
  return learn_in_groups(tokens, chunks, groups, place, state);
}

// What depends on the state is done chunk by chunk: gradients and weights. Coefficients are those of all
// chunks at once, as if they were heads, and so are the answers of a group.
std::pair<Variable, State> ChunkedMemory::learn_in_groups(const MemoryTokens& tokens, int64_t chunks,
                                                          int64_t groups, int64_t place,
                                                          const State& state) const {
  const Memory& memory = policy_.memory;
  const Retention& retention = policy_.retention;
  const size_t count = memory.names.size();
  const int64_t n = tokens.k.dim(1), heads = tokens.k.dim(0) / chunks;
  const bool closes = place + n == chunk_;
  CHECK(place + n <= chunk_ && (chunks == 1 || closes) && chunks % groups == 0 && state[0].dim(0) == heads,
        "memory: ", chunks, " chunks of ", n, " tokens from ", place, " of ", chunk_, ", state ",
        state[0].shape());
  const LearningCoefficients c = learning_coefficients(tokens.step, tokens.keep, tokens.momentum);
  const int64_t reached = closes ? 0 : place + n;
  if (place == 0 && policy_.matrix()) {
    const MatrixLearning m = learn_matrix(state[0], state[1], tokens.k, tokens.v, c.last, chunks);
    const Variable y = read_while_learning(tokens.q, m.before_a, m.before_s, tokens.k, m.error, c);
    return {y, end_of({m.a}, {m.s}, {closes ? m.a : state[0]}, reached)};
  }

  const std::vector<Variable> k = parts_of(tokens.k, chunks), v = parts_of(tokens.v, chunks),
                              bound = parts_of(tokens.bound, chunks), last = parts_of(c.last, chunks),
                              q = parts_of(tokens.q, groups),
                              keys = groups == chunks ? k : parts_of(tokens.k, groups),
                              from_a = parts_of(c.from_a, groups), from_s = parts_of(c.from_s, groups),
                              taken = parts_of(c.taken, groups);
  State a(state.begin(), state.begin() + static_cast<std::ptrdiff_t>(count)), s,
      start = at_start(state, place), made = made_of(start);
  for (size_t i = 0; policy_.momentum && i < count; ++i) s.push_back(state[count + i]);
  Read read(count);
  std::vector<Variable> answers;
  for (size_t chunk = 0; chunk < static_cast<size_t>(chunks); ++chunk) {
    const std::vector<OuterProducts> gradient = memory.gradient(
        [&](size_t i, const Variable& x, bool transposed) {
          return retention.times(x, start[i], made[i], transposed);
        },
        k[chunk], v[chunk], [&](const Variable& error) { return policy_.bias.slope(error, bound[chunk]); });
    for (size_t i = 0; i < count; ++i) {
      read.before_a[i].push_back(a[i]);
      read.made[i].push_back(made[i]);
      read.in[i].push_back(gradient[i].in);
      read.out[i].push_back(gradient[i].out);
      if (policy_.momentum) read.before_s[i].push_back(s[i]);
      const std::vector<Variable> moved = after_learning(a[i], policy_.momentum ? s[i] : Variable(),
                                                         gradient[i].in, gradient[i].out, last[chunk]);
      a[i] = moved[0];
      if (policy_.momentum) s[i] = moved[1];
    }
    if (closes) {
      start = a;
      made = made_of(start);
      for (size_t i = 0; i < count; ++i) read.next[i].push_back(made[i]);
    }
    if ((chunk + 1) % static_cast<size_t>(chunks / groups) != 0) continue;
    const size_t at = answers.size();
    answers.push_back(answer(read, q[at], keys[at], {from_a[at], from_s[at], taken[at], {}}));
    read = Read(count);
  }
  return {together(answers), end_of(a, s, start, reached)};
}

}  // namespace weft
