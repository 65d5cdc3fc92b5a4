#include "attention/sparsek.h"

#include <algorithm>
#include <cmath>

#include "attention/chunks.h"
#include "attention/kept_attention.h"
#include "attention/merge.h"
#include "attention/merge_partials.h"
#include "attention/naive.h"
#include "attention/seen_pairs.h"
#include "attention/selected_attention.h"
#include "attention/softmax.h"
#include "attention/sparsek_rows.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/rotary.h"
#include "autograd/ops/softmax.h"
#include "autograd/ops/sparsek.h"
#include "autograd/ops/top_k.h"

namespace weft {
namespace {

constexpr double kNone = -INFINITY;  // the score of no pair

// u + slope position.  u (N, H)
Variable with_slope(const Variable& u, const Tensor& position, double slope) {
  if (slope == 0) return u;
  const Variable at = numbers_of(position, u.dtype()).reshape({u.dim(0), 1});
  return add(u, scale(at, slope));
}

// Of each token, the row among {block, before} of the one `window` tokens earlier, or -1.
Tensor rows_behind(const Layout& layout, int64_t window, Device device) {
  std::vector<int32_t> rows;
  const int64_t own = layout.tokens();
  int64_t g = 0, first = 0;
  for (const Segment& s : layout.segments) {
    for (int64_t i = 0; i < s.size(); ++i) {
      const int64_t row = i < window ? own + g * window + i : first + i - window;
      rows.push_back(s.begin + i < window ? -1 : static_cast<int32_t>(row));
    }
    ++g;
    first += s.size();
  }
  return from_ints(rows, device);
}

// (M, C, G, D) -> (M, H, C, D), each key head for the query heads that share it.
Variable keys_by_head(const Variable& x, int64_t heads) {
  const int64_t groups = x.dim(2);
  if (groups == heads) return permute(x, {0, 2, 1, 3});
  const Variable first = permute(x, {2, 0, 1, 3});
  std::vector<int32_t> owner;
  for (int64_t h = 0; h < heads; ++h) owner.push_back(static_cast<int32_t>(h * groups / heads));
  return permute(gather_rows(first, from_ints(owner, x.device())), {1, 0, 2, 3});
}

// A state holds 0 and not -infinity where it has no score, so that all of it is finite, and says in `held`
// which are there: {k (M, H, kept, Dk), v, u (M, H, kept), rest (M, H, others), held (M, H, kept + others)}.
// Here its scores as they are compared, {u, rest}.
std::vector<Variable> scores_of(const State& state) {
  // 0 where more than a half is held, as a state from outside may say it, else -infinity.
  const Variable x = scale(state[4].value(), 1, -0.5), size = abs(x);
  const Variable absent = log(divide(add(x, size), scale(size, 2, 1e-30)));
  const int64_t kept = state[2].dim(2), all = absent.dim(2);
  return {add(state[2], slice(absent, 2, 0, kept)), add(state[3], slice(absent, 2, kept, all))};
}

// Scores with a pair (M, H, X), and behind them scores without (M, H, Y), if any.
struct Scores {
  Variable pairs, others;
};

// The pairs {k (M, H, X, Dk), v} of these scores, the older first, -infinity for none. The best `kept` pairs
// and the best `others` of all scores that are left, as a state; of equal scores the earlier.
State best_of(const std::vector<Variable>& all, const std::vector<Scores>& by_age, int64_t kept,
              int64_t others) {
  std::vector<Variable> with_pair;
  for (const Scores& s : by_age) with_pair.push_back(s.pairs);
  const Variable scores = concatenate(with_pair, 2);
  const int64_t m = scores.dim(0), heads = scores.dim(1), pairs = scores.dim(2), r = m * heads;
  const Variable u = reshape(scores, {r, pairs});
  const Tensor best = top_k(u, kept).indices, rows = best_rows(u, best, kept);
  State out;
  for (int i = 0; i < 2; ++i) {
    const int64_t size = all[i].dim(3);
    out.push_back(reshape(gather_rows(reshape(all[i], {r * pairs, size}), rows), {m, heads, kept, size}));
  }
  out.push_back(reshape(gather_rows(reshape(u, {r * pairs, 1}), rows), {m, heads, kept}));
  const Variable left = add(u, log(scale(Variable(marks(best, pairs, u.dtype())), -1, 1)));
  std::vector<Variable> lists;
  int64_t at = 0;
  for (const Scores& s : by_age) {
    const int64_t end = at + s.pairs.dim(2);
    lists.push_back(slice(left, 1, at, end));
    if (s.others.defined()) lists.push_back(reshape(s.others, {r, s.others.dim(2)}));
    at = end;
  }
  const Variable pool = concatenate(lists, 1);
  const Tensor rest = best_rows(pool, top_k(pool, others).indices, others);
  out.push_back(reshape(gather_rows(reshape(pool, {pool.numel(), 1}), rest), {m, heads, others}));
  const auto there = [&](const Tensor& index, int64_t count) {
    const Variable one = full({pool.numel(), 1}, 1, u.dtype(), u.device());
    return reshape(gather_rows(one, index), {m, heads, count});
  };
  out.push_back(concatenate({there(rows, kept), there(rest, others)}, 2));
  return out;
}

}  // namespace

void SparseKConfig::fields(FieldVisitor& f) {
  f("k", k, "pairs kept from before the window", {.unit = "pairs", .min = 1, .max = 1 << 20});
  f("window", window, "last tokens that are always seen, the token itself included; 0 = none",
    {.unit = "tokens", .min = 0, .max = kLongestWindow});
  f("support", support, "highest scores over which the gates are computed; 0 = 4 k",
    {.min = 0, .max = 1 << 22});
  f("slope", slope, "added to a score for each position, so that later scores need not grow to be kept");
  f("gate", gate, "what the gates multiply", {.choices = {"kv", "v"}});
  f("scale", scale, "factor of the scores q k; 0 = 1 / sqrt(key size)", {.min = 0});
  f("position", position, "how positions are encoded", {.choices = {"none", "rope"}});
  f("rope_theta", rope_theta, "base of the rotary wavelengths", {.min = 1});
  f("chunk", chunk, "tokens processed at once between two kept sets",
    {.unit = "tokens", .min = 1, .speed_only = true});
}

SparseK::SparseK(Config config, Dimensions dims, const ParameterScope&)
    : Mechanism(dims), config_(std::move(config)) {
  if (config_.scale == 0) config_.scale = 1 / std::sqrt(static_cast<double>(dims.key));
  if (config_.support == 0) config_.support = 4 * config_.k;
  if (config_.position == "rope" && dims.key % 2 != 0)
    throw Error(Exit::recipe, text("rotary positions need an even key size, got ", dims.key), "position",
                "set position=none, or another key size");
  if (config_.support <= config_.k)
    throw Error(Exit::recipe, text("gates over ", config_.support, " scores are all 1 for k = ", config_.k),
                "support", "set it above k, or 0");
}

std::vector<Input> SparseK::inputs() const { return {{"q", "h k"}, {"k", "g k"}, {"v", "g v"}, {"u", "h"}}; }

SparseK::Near SparseK::near(const Block& block, const Variable& u, Crossing& cross) const {
  const Dtype wide = u.dtype();
  if (config_.window == 0) return {{}, {}, cast(block.x[1], wide), cast(block.x[2], wide), u};
  AttentionOptions options{.scale = config_.scale};
  options.window = config_.window;
  const Layout& layout = cross.layout();
  // A Halo gives one tensor: everything side by side, in f32 (f64).
  const std::vector<int64_t> widths{dims().heads * dims().value, dims().heads, dims().kv_heads * dims().key,
                                    dims().kv_heads * dims().value, dims().heads};
  const Halo halo{config_.window, [=, &layout, window = config_.window](const Block& b, const Block& before) {
                    const Block keys = own_then_before(b, before);
                    const auto y = merge(softmax_merge(options), {{b.x[0]}, b.position, b.document}, keys,
                                         seen_pairs(options, layout.segments));
                    const Tensor behind = rows_behind(layout, window, b.x[0].device());
                    const std::vector<Variable> parts{y[0], y[1], gather_rows(keys.x[1], behind),
                                                      gather_rows(keys.x[2], behind),
                                                      gather_rows(keys.x[3], behind, kNone)};
                    std::vector<Variable> columns;
                    for (size_t i = 0; i < parts.size(); ++i)
                      columns.push_back(cast(reshape(parts[i], {parts[i].dim(0), widths[i]}), wide));
                    return concatenate(columns, 1);
                  }};
  const Variable all = cross(halo, {{block.x[0], block.x[1], block.x[2], u}, block.position, block.document});
  const std::vector<Variable> part = split_columns(all, widths);
  const int64_t n = all.dim(0), h = dims().heads, g = dims().kv_heads;
  return {reshape(part[0], {n, h, dims().value}), reshape(part[1], {n, h, 1}),
          reshape(part[2], {n, g, dims().key}), reshape(part[3], {n, g, dims().value}), part[4]};
}

Scan SparseK::far(Dtype dtype, Device device) const {
  const int64_t heads = dims().heads, d = dims().key, e = dims().value;
  const int64_t kept = config_.k, others = config_.support - kept;
  Scan scan;
  scan.names = {"k", "v", "u", "rest", "held"};
  scan.pad = {0, 0, 0, kNone};
  scan.chunk = config_.chunk;
  scan.identity = [=] {
    const auto none = [&](const Shape& shape) { return zeros(shape, dtype, device); };
    return State{none({1, heads, kept, d}), none({1, heads, kept, e}), none({1, heads, kept}),
                 none({1, heads, others}), none({1, heads, kept + others})};
  };
  const auto candidates = [heads](const Block& b) {
    return std::vector{keys_by_head(b.x[1], heads), keys_by_head(b.x[2], heads), permute(b.x[3], {0, 2, 1})};
  };
  const auto together = [](const Variable& a, const Variable& b) { return concatenate({a, b}, 2); };
  scan.summarize = [=, identity = scan.identity](const Block& b) {
    const Tensor same = from_ints(std::vector<int32_t>(static_cast<size_t>(b.x[0].dim(0)), 0), device);
    const State none = gather_state(identity(), same);
    const std::vector<Variable> scores = scores_of(none), more = candidates(b);
    return best_of({together(none[0], more[0]), together(none[1], more[1])},
                   {{scores[0], scores[1]}, {more[2], {}}}, kept, others);
  };
  scan.combine = [=](const State& before, const State& after) {
    const std::vector<Variable> a = scores_of(before), b = scores_of(after);
    return best_of({together(before[0], after[0]), together(before[1], after[1])},
                   {{a[0], a[1]}, {b[0], b[1]}}, kept, others);
  };
  scan.apply = [=, factor = config_.scale, gate_keys = config_.gate == "kv"](const Block& b,
                                                                             const State& prefix) {
    const std::vector<Variable> more = candidates(b), past = scores_of(prefix);
    const int64_t m = b.x[0].dim(0), c = b.x[0].dim(1), r = m * heads, pairs = kept + c;
    const Variable scores = reshape(concatenate({past[0], past[1], more[2]}, 2), {r, kept + others + c});
    const Tensor best = running_top_k(scores, kept, others);
    const Variable z = reshape(gather_last(scores, best.reshape({r, c * (kept + others)})), best.shape());
    const Variable gates = slice(sparsek(z, kept), 2, 0, kept);
    const auto all = [&](int i) {
      return reshape(together(prefix[i], more[i]), {r * pairs, more[i].dim(3)});
    };
    const Variable q = reshape(permute(cast(b.x[0], dtype), {0, 2, 1, 3}), {r * c, d});
    const auto y = selected_attention(q, all(0), all(1), reshape(gates, {r * c, kept}),
                                      pair_rows(best, kept, others, pairs),
                                      {.scale = factor, .gate_keys = gate_keys, .groups = r});
    const Variable both = concatenate({y[0], reshape(y[1], {r * c, 1})}, 1);
    return permute(reshape(both, {m, heads, c, e + 1}), {0, 2, 1, 3});
  };
  // Whole documents need no copies of kept pairs: candidates come and go.
  scan.whole = [=, this](const Block& b, const Layout& layout) {
    const std::vector<Variable> y = kept_attention(
        cast(b.x[0], dtype), b.x[1], b.x[2], b.x[3], layout,
        {.kept = kept, .support = kept + others, .scale = config_.scale, .gate_keys = config_.gate == "kv"});
    return concatenate({y[0], reshape(y[1], {b.x[0].dim(0), heads, 1})}, 2);
  };
  return scan;
}

Variable SparseK::forward(const Block& given, Crossing& cross) const {
  Block block = given;
  if (config_.position == "rope")
    for (int i = 0; i < 2; ++i) block.x[i] = rotary(block.x[i], block.position, config_.rope_theta);
  const Dtype wide = wide_of(block.x[0].dtype());
  const int64_t e = dims().value;
  const Variable u = with_slope(cast(block.x[3], wide), block.position, config_.slope);
  const Near close = near(block, u, cross);
  const Variable y =
      cross(far(wide, u.device()), {{block.x[0], close.k, close.v, close.u}, block.position, block.document});
  const Variable o = slice(y, 2, 0, e), lse = slice(y, 2, e, e + 1);
  if (config_.window == 0) return cast(o, block.x[2].dtype());
  const Shape rows = close.u.shape();
  return cast(merge_partials(close.o, reshape(close.lse, rows), o, reshape(lse, rows))[0],
              block.x[2].dtype());
}

namespace {

// The gates of one row of scores, highest first: which are 1, which lie between, by bisection for tau.
void split_support(const std::vector<double>& z, int64_t k, std::vector<bool>& one, std::vector<bool>& part) {
  double low = z.back() - 1, high = z.front();
  for (int i = 0; i < 200; ++i) {
    const double tau = (low + high) / 2;
    double sum = 0;
    for (const double s : z) sum += std::clamp(s - tau, 0.0, 1.0);
    (sum > static_cast<double>(k) ? low : high) = tau;
  }
  for (const double s : z) {
    one.push_back(s - low >= 1);
    part.push_back(!one.back() && s > low);
  }
}

}  // namespace

// The whole matrices of one head: who is kept, who is in the support, and p from its closed form there.
Variable SparseK::reference(const Block& block) const {
  const int64_t n = block.x[0].dim(0), heads = dims().heads;
  const Dtype type = block.x[0].dtype();
  const std::vector<double> u = to_values(block.x[3]), at = to_values(block.position);
  Variable q = block.x[0], k = block.x[1];
  if (config_.position == "rope") {
    q = naive_rotary(q, 0, config_.rope_theta);
    k = naive_rotary(k, 0, config_.rope_theta);
  }
  std::vector<Variable> outputs;
  for (int64_t h = 0; h < heads; ++h) {
    const size_t size = static_cast<size_t>(n * n);
    std::vector<double> window(size), kept(size), one(size), part(size), bias(size, kNone);
    std::vector<double> excess(static_cast<size_t>(n)), inverse(static_cast<size_t>(n), 1);
    for (int64_t t = 0; t < n; ++t) {
      std::vector<std::pair<double, int64_t>> order;  // the highest score first, then the earlier
      for (int64_t j = 0; j <= t; ++j) {
        if (t - j < config_.window)
          window[t * n + j] = 1;
        else
          order.emplace_back(-(u[j * heads + h] + config_.slope * at[j]), j);
      }
      std::sort(order.begin(), order.end());
      order.resize(std::min(order.size(), static_cast<size_t>(config_.support)));
      std::vector<double> z;
      for (const auto& [score, j] : order) z.push_back(-score);
      std::vector<bool> is_one(z.size(), true), is_part(z.size(), false);
      if (std::ssize(z) > config_.k) {
        is_one.clear();
        is_part.clear();
        split_support(z, config_.k, is_one, is_part);
      }
      double count = 0, saturated = 0;
      for (size_t i = 0; i < z.size(); ++i) {
        const size_t place = static_cast<size_t>(t * n + order[i].second);
        kept[place] = static_cast<int64_t>(i) < config_.k;
        one[place] = is_one[i];
        part[place] = is_part[i];
        count += is_part[i];
        saturated += is_one[i];
      }
      if (count > 0) {
        inverse[t] = 1 / count;
        excess[t] = saturated - static_cast<double>(config_.k);
      }
      for (int64_t j = 0; j < n; ++j)
        if (window[t * n + j] + kept[t * n + j] > 0) bias[t * n + j] = 0;
    }
    const auto constant = [&](const std::vector<double>& values) {
      return Variable(from_values({n, n}, type, values));
    };
    const auto column = [&](const std::vector<double>& values) {
      return Variable(from_values({n, 1}, type, values));
    };
    const auto head = [&](const Variable& x, int64_t of) {
      return reshape(slice(x, 1, of, of + 1), {n, x.dim(2)});
    };
    const Variable height = from_values({n, 1}, type, at);
    const Variable z = add(slice(block.x[3], 1, h, h + 1), scale(height, config_.slope));  // (n, 1)
    const Variable tau = multiply(add(matmul(constant(part), z), column(excess)), column(inverse));
    const Variable p = add(constant(one), multiply(constant(part), subtract(reshape(z, {1, n}), tau)));
    const Variable gate = add(constant(window), multiply(constant(kept), p));
    const int64_t owner = h * dims().kv_heads / heads;
    Variable scores = scale(matmul(head(q, h), head(k, owner), {false, true}), config_.scale);
    if (config_.gate == "kv") scores = multiply(scores, gate);
    const Variable weights = multiply(softmax(add(scores, constant(bias))), gate);
    outputs.push_back(reshape(matmul(weights, head(block.x[2], owner)), {n, 1, dims().value}));
  }
  return concatenate(outputs, 1);
}

std::vector<Identity> SparseK::identities() const {
  const Dimensions d = dims();
  const auto against_dense = [d](const SparseKConfig& config) {
    const int64_t n = 11;
    ParameterStore store(Dtype::f64);
    const Layout layout = whole_documents({n});
    const Block dense{{random_tensor({n, d.heads, d.key}, 1), random_tensor({n, d.kv_heads, d.key}, 2),
                       random_tensor({n, d.kv_heads, d.value}, 3)},
                      layout.position,
                      layout.document};
    Block block = dense;
    block.x.push_back(random_tensor({n, d.heads}, 4));
    LocalCrossing sparse(layout), full(layout);
    return largest_difference(SparseK(config, d, {store, ""}).forward(block, sparse),
                              Softmax({}, d, {store, ""}).forward(dense, full));
  };
  return {
      {"with k as long as the text, all gates are 1 and attention is dense", 1e-12,
       [=] { return against_dense({.k = 11, .window = 0}); }},
      {"with k and the window as long as the text together, attention is dense", 1e-12,
       [=] { return against_dense({.k = 7, .window = 4}); }},
      {"a window as long as the text is dense attention", 1e-12,
       [=] { return against_dense({.k = 2, .window = 11}); }},
  };
}

}  // namespace weft
