#include "attention/memory.h"

#include <algorithm>

#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/triangle.h"

namespace weft {
namespace {

// P_ij = g_{j+1} ... g_i for j <= i, else 0, where rows 1..n are tokens and row 0 is what was before them.
// g (H, n, 1) -> (H, n+1, n+1). I + L + L^2 + ... by doubling, L holding g below the diagonal: no logarithm
// of a zero and no power of an inverse.
Variable running_products(const Variable& g) {
  const int64_t h = g.dim(0), n = g.dim(1) + 1;
  const Tensor ones = full({h, n, n}, 1, g.dtype(), g.device());
  const Variable diagonal = subtract(lower_triangle(ones), lower_triangle(ones, -1));
  const Variable below = subtract(lower_triangle(ones, -1), lower_triangle(ones, -2));
  Variable power = multiply(below, concatenate({zeros({h, 1, 1}, g.dtype(), g.device()), g}, 1));
  Variable products = add(diagonal, power);
  for (int64_t reach = 1; reach + 1 < n; reach = 2 * reach + 1) {
    power = matmul(power, power);
    products = add(products, matmul(products, power));
  }
  return products;
}

Variable row(const Variable& x, int64_t i) { return slice(x, 1, i, i + 1); }
Variable transposed(const Variable& x) { return permute(x, {0, 2, 1}); }

// Coefficients of A_t and S_t, t = 1..n:
//   A_t = from_a A_0 + from_s S_0 - sum_j taken_tj grad_j      S_n = s_from_s S_0 - sum_j s_taken_j grad_j
struct Coefficients {
  Variable from_a, from_s, taken;  // (H, n, 1), (H, n, 1), (H, n, n)
  Variable s_from_s, s_taken;      // (H, 1, 1), (H, 1, n)
};

Coefficients coefficients_of(const MemoryTokens& tokens, bool momentum) {
  const int64_t n = tokens.k.dim(1);
  const Variable kept = slice(running_products(tokens.keep), 1, 1, n + 1);
  const Variable steps = transposed(tokens.step);
  const Variable between = slice(kept, 2, 1, n + 1);
  if (!momentum) return {slice(kept, 2, 0, 1), {}, multiply(between, steps), {}, {}};
  const Variable surprise = slice(running_products(tokens.momentum), 1, 1, n + 1);
  const Variable both = matmul(between, surprise), last = row(surprise, n - 1);
  return {slice(kept, 2, 0, 1), slice(both, 2, 0, 1), multiply(slice(both, 2, 1, n + 1), steps),
          slice(last, 2, 0, 1), multiply(slice(last, 2, 1, n + 1), steps)};
}

// sum_j c_j in_j^T out_j.  c (H, 1, n)
Variable sum_of(const OuterProducts& g, const Variable& c) {
  return matmul(multiply(g.in, transposed(c)), g.out, {true, false});
}

MemoryTokens tokens_between(const MemoryTokens& t, int64_t begin, int64_t end) {
  const auto cut = [&](const Variable& x) { return x.defined() ? slice(x, 1, begin, end) : x; };
  return {cut(t.q), cut(t.k), cut(t.v), cut(t.step), cut(t.keep), cut(t.momentum), cut(t.bound)};
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

int64_t ChunkedMemory::room(const State& state) const {
  const Tensor& place = state.back();
  if (place.device() == Device::meta) return chunk_;
  return chunk_ - std::clamp<int64_t>(static_cast<int64_t>(to_values(place)[0]), 0, chunk_ - 1);
}

State ChunkedMemory::at_start(const State& state) const {
  const auto count = static_cast<std::ptrdiff_t>(policy_.memory.names.size());
  const auto from = room(state) == chunk_ ? state.begin() : state.end() - 1 - count;
  return {from, from + count};
}

State ChunkedMemory::weights_of(const State& a) const {
  State weights;
  for (const Variable& w : a) weights.push_back(policy_.retention.weights(w));
  return weights;
}

Variable ChunkedMemory::recall(const State& state, const Variable& x) const {
  return answer(weights_of(at_start(state)), x);
}

Variable ChunkedMemory::answer(const State& weights, const Variable& x) const {
  return policy_.memory.answer([&](size_t i, const Variable& rows) { return matmul(rows, weights[i]); }, x);
}

std::pair<Variable, State> ChunkedMemory::learn_in_chunk(const MemoryTokens& tokens,
                                                         const State& state) const {
  const Memory& memory = policy_.memory;
  const Retention& retention = policy_.retention;
  const size_t count = memory.names.size();
  const int64_t n = tokens.k.dim(1), room = this->room(state);
  const bool closes = n == room;
  const State start = at_start(state), weights = weights_of(start);
  const std::vector<OuterProducts> gradient = memory.gradient(
      weights, tokens.k, tokens.v, [&](const Variable& error) { return policy_.bias(error, tokens.bound); });
  const Coefficients c = coefficients_of(tokens, policy_.momentum);

  const Weigh moving = [&](size_t i, const Variable& x) {
    if (retention.map) return matmul(x, weights[i]);
    Variable y = multiply(matmul(x, state[i]), c.from_a);
    if (policy_.momentum) y = add(y, multiply(matmul(x, state[count + i]), c.from_s));
    const Variable scores = multiply(matmul(x, gradient[i].in, {false, true}), c.taken);
    y = subtract(y, matmul(scores, gradient[i].out));
    return retention.scale ? multiply(y, retention.scale(start[i])) : y;
  };
  Variable y = memory.answer(moving, tokens.q);

  State a, s, from;
  for (size_t i = 0; i < count; ++i) {
    Variable moved =
        subtract(multiply(state[i], row(c.from_a, n - 1)), sum_of(gradient[i], row(c.taken, n - 1)));
    if (policy_.momentum) {
      const Variable& surprise = state[count + i];
      moved = add(moved, multiply(surprise, row(c.from_s, n - 1)));
      s.push_back(subtract(multiply(surprise, c.s_from_s), sum_of(gradient[i], c.s_taken)));
    }
    a.push_back(moved);
    from.push_back(closes ? moved : start[i]);
  }
  if (closes && (retention.scale || retention.map)) {
    const Variable last = answer(weights_of(a), row(tokens.q, n - 1));
    y = n == 1 ? last : concatenate({slice(y, 1, 0, n - 1), last}, 1);
  }
  State after = a;
  after.insert(after.end(), s.begin(), s.end());
  after.insert(after.end(), from.begin(), from.end());
  const int64_t place = closes ? 0 : chunk_ - room + n;
  after.push_back(full({1}, static_cast<double>(place), a[0].dtype(), a[0].device()));
  return {y, after};
}

std::pair<Variable, State> ChunkedMemory::learn(const MemoryTokens& tokens, const State& state) const {
  const int64_t n = tokens.k.dim(1);
  State now = state;
  std::vector<Variable> answers;
  for (int64_t at = 0; at < n;) {
    const int64_t end = std::min(n, at + room(now));
    auto [y, after] = learn_in_chunk(tokens_between(tokens, at, end), now);
    answers.push_back(y);
    now = after;
    at = end;
  }
  return {concatenate(answers, 1), now};
}

}  // namespace weft
