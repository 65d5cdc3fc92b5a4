#include "attention/gla.h"

#include <cmath>

#include "attention/chunks.h"
#include "attention/in_chunk.h"
#include "attention/linear_attention.h"
#include "attention/linear_run.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"

namespace weft {
namespace {

// sum_{j <= i} ((q_i e^{b_i - b_j}) . k_j) v_j within each chunk, b the running sum of g. All (R, C, D).
// Rows are halved from pairs upwards: of each block, the queries of its second half meet the keys of its
// first, both measured from the border between them.
Variable decayed_products(const Variable& q, const Variable& k, const Variable& v, const Variable& g) {
  const int64_t rows = q.dim(0), n = q.dim(1);
  int64_t full = 1;
  while (full < n) full *= 2;
  const auto padded = [&](const Variable& x) {
    if (full == n) return x;
    return concatenate({x, zeros({rows, full - n, x.dim(2)}, x.dtype(), x.device())}, 1);
  };
  const Variable queries = padded(q), keys = padded(k), values = padded(v), b = cumulative_sum(padded(g), 1);
  Variable o = multiply(sum(multiply(queries, keys), 2, true), values);  // the own token
  for (int64_t half = 1; half < full; half *= 2) {
    const int64_t blocks = rows * full / (2 * half);
    const auto side = [&](const Variable& x, int64_t second) {
      return slice(reshape(x, {blocks, 2 * half, x.dim(2)}), 1, second * half, (second + 1) * half);
    };
    const Variable before = side(b, 0), border = slice(before, 1, half - 1, half);
    const Variable from = multiply(side(queries, 1), exp(subtract(side(b, 1), border)));
    const Variable to = multiply(side(keys, 0), exp(subtract(border, before)));
    const Variable y = matmul(matmul(from, to, {false, true}), side(values, 0));
    o = add(o, reshape(concatenate({zeros(y.shape(), y.dtype(), y.device()), y}, 1), o.shape()));
  }
  return full == n ? o : slice(o, 1, 0, n);
}

}  // namespace

Scan channel_decay_scan(double scale, int64_t chunk, int64_t heads, int64_t key, int64_t value, Dtype dtype,
                        Device device) {
  Scan scan;
  scan.names = {"", "S"};
  scan.pad = {0, 0, 0, 0};
  scan.chunk = chunk;
  scan.decay = true;
  const Dtype type = wide_of(dtype);
  scan.identity = [=] {
    return State{full({1, heads, key, 1}, 1, type, device), zeros({1, heads, key, value}, type, device)};
  };
  scan.summarize = [](const Block& b) {
    const Variable k = by_head(b.x[1]), v = by_head(b.x[2]), decay = cumulative_sum(by_head(b.x[3]), 2);
    const int64_t n = k.dim(2);
    const Variable last = slice(decay, 2, n - 1, n);
    return State{reshape(exp(last), {k.dim(0), k.dim(1), k.dim(3), 1}),
                 matmul(multiply(k, exp(subtract(last, decay))), v, {true, false})};
  };
  scan.combine = [](const State& before, const State& after) {
    return State{multiply(before[0], after[0]), add(multiply(after[0], before[1]), after[1])};
  };
  scan.apply = [=](const Block& b, const State& prefix) {
    const Variable q = weft::scale(by_head(b.x[0]), scale), k = by_head(b.x[1]), v = by_head(b.x[2]),
                   g = by_head(b.x[3]);
    const auto rows = [](const Variable& x) { return reshape(x, {x.dim(0) * x.dim(1), x.dim(2), x.dim(3)}); };
    const Variable own = decayed_products(rows(q), rows(k), rows(v), rows(g));
    const Variable past = matmul(multiply(q, exp(cumulative_sum(g, 2))), prefix[1]);
    return by_token(add(reshape(own, past.shape()), past), b.x[2].dtype());
  };
  scan.kernel.transition = [=](const Block& b, const Layout& layout) {
    const auto segments = static_cast<int64_t>(layout.segments.size());
    return reshape(exp(sum_by_segment(cast(b.x[3], type), layout)), {segments, heads, key, 1});
  };
  use_linear_run(scan, scale, true, key, value, dtype);
  return scan;
}

Variable channel_decay_reference(const Variable& q, const Variable& k, const Variable& v, const Variable& g,
                                 double factor) {
  const int64_t h = q.dim(1), d = q.dim(2), e = v.dim(2);
  Variable s = zeros({h, d, e}, q.dtype(), q.device());
  std::vector<Variable> outputs;
  for (int64_t t = 0; t < q.dim(0); ++t) {
    const auto as = [&](const Variable& x, int64_t rows, int64_t columns) {
      return reshape(slice(x, 0, t, t + 1), {h, rows, columns});
    };
    s = add(multiply(exp(as(g, d, 1)), s), matmul(as(k, d, 1), as(v, 1, e)));
    outputs.push_back(reshape(scale(matmul(as(q, 1, d), s), factor), {1, h, e}));
  }
  return concatenate(outputs, 0);
}

void GlaConfig::fields(FieldVisitor& f) {
  f("scale", scale, "factor of the scores q k; 0 = 1 / sqrt(key size)", {.min = 0});
  f("chunk", chunk, "tokens processed as one matrix product",
    {.unit = "tokens", .min = 1, .speed_only = true});
}

Gla::Gla(Config config, Dimensions dims, const ParameterScope&) : Mechanism(dims), config_(config) {
  if (config_.scale == 0) config_.scale = 1 / std::sqrt(static_cast<double>(dims.key));
  require_equal_heads(dims, "gated linear attention");
}

std::vector<Input> Gla::inputs() const {
  return {{"q", "h k"}, {"k", "h k"}, {"v", "h v"}, {"g", "h k", Domain::log_decay}};
}

Variable Gla::forward(const Block& block, Crossing& cross) const {
  return cross(channel_decay_scan(config_.scale, config_.chunk, dims().heads, dims().key, dims().value,
                                  block.x[2].dtype(), block.x[2].device()),
               block);
}

Variable Gla::reference(const Block& block) const {
  return channel_decay_reference(block.x[0], block.x[1], block.x[2], block.x[3], config_.scale);
}

std::vector<Identity> Gla::identities() const {
  const Dimensions d = dims();
  return {
      {"with one decay for all channels of a head it is the scalar gate", 1e-12,
       [d] {
         const int64_t n = 37;
         ParameterStore store(Dtype::f64);
         const Gla gla({.chunk = 16}, d, {store, "a."});
         const SimpleGla scalar({.chunk = 8}, d, {store, "b."});
         const Layout layout = whole_documents({n});
         Block b = random_block(scalar, layout);
         LocalCrossing first(layout), second(layout);
         const Variable expected = scalar.forward(b, first);
         b.x[3] = add(zeros({n, d.heads, d.key}, Dtype::f64), reshape(b.x[3], {n, d.heads, 1}));
         return largest_difference(gla.forward(b, second), expected);
       }},
      {"channels that forget at once beside channels that hardly do stay exact, in one chunk", 1e-10, [d] {
         const int64_t n = 64, size = n * d.heads * d.key;
         ParameterStore store(Dtype::f64);
         const Gla gla({.chunk = 64}, d, {store, ""});
         const Layout layout = whole_documents({n});
         Block b = random_block(gla, layout);
         std::vector<double> g(static_cast<size_t>(size));
         for (int64_t i = 0; i < size; ++i)
           g[i] = i % 3 == 0 && i / (d.heads * d.key) % 5 == 0 ? -1000 : -0.01 * static_cast<double>(i % 4);
         b.x[3] = from_values(b.x[3].shape(), Dtype::f64, g);
         LocalCrossing cross(layout);
         return largest_difference(gla.forward(b, cross), gla.reference(b));
       }}};
}

}  // namespace weft
