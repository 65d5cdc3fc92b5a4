#include "attention/regla.h"

#include <algorithm>
#include <cmath>

#include "attention/gla.h"
#include "attention/in_chunk.h"
#include "attention/naive.h"
#include "attention/running_max.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/rms_norm.h"

namespace weft {
namespace {

constexpr double kReglaNormEps = 1e-12, kLeastRatio = 1e-30, kLeastGate = 1e-37;

// 1 over the deviation of a product of features of `size` normal queries and keys.
double variance_factor(int64_t size) {
  const double e = std::exp(1);
  return 1 / (e * std::sqrt(static_cast<double>(size) * (e * e - 1)));
}

}  // namespace

// f / g = 1 + (2 r - 1)(1 - g), which is above g: 0 only where r and g are, rounded.
Variable refined_log_gate(const Variable& log_gate, const Variable& refine) {
  const Variable open = scale(exp(log_gate), -1, 1);
  const Variable ratio = scale(multiply(scale(refine, 2, -1), open), 1, 1);
  return add(log_gate, log(maximum(ratio, full({1}, kLeastRatio, ratio.dtype(), ratio.device()))));
}

void ReglaConfig::fields(FieldVisitor& f) {
  f("scale", scale, "factor of the products of features; 0 = 1 / (e sqrt(key size (e^2 - 1)))", {.min = 0});
  f("chunk", chunk, "tokens processed as one matrix product",
    {.unit = "tokens", .min = 1, .speed_only = true});
}

Regla::Regla(Config config, Dimensions dims, const ParameterScope& scope) : Mechanism(dims), config_(config) {
  if (config_.scale == 0) config_.scale = variance_factor(dims.key);
  require_equal_heads(dims, "ReGLA");
  gain_ = scope.declare({"norm", {dims.value}, ParameterKind::vector, Initializer::constant(1)});
}

std::vector<Input> Regla::inputs() const {
  return {
      {"q", "h k"}, {"k", "h k"}, {"v", "h v"}, {"g", "h k", Domain::log_decay}, {"r", "h k", Domain::unit}};
}

Variable Regla::forward(const Block& block, Crossing& cross) const {
  const Variable& v = block.x[2];
  const Dtype wide = wide_of(v.dtype());  // a gate near 1 is 1 in bf16
  const int64_t n = v.dim(0), heads = dims().heads;
  const Variable q = cast(block.x[0], wide), k = cast(block.x[1], wide);
  const SoFar largest = largest_so_far(max(k.value(), -1), 0, config_.chunk, block, cross);
  const Variable before = reshape(largest.before, {n, heads, 1}), now = reshape(largest.now, {n, heads, 1});
  const Variable gate =
      add(refined_log_gate(cast(block.x[3], wide), cast(block.x[4], wide)), subtract(before, now));
  const Scan scan = channel_decay_scan(config_.scale, config_.chunk, heads, dims().key, dims().value,
                                       v.dtype(), v.device());
  const Variable queries = exp(subtract(q, max(q, -1, true))), keys = exp(subtract(k, now));
  const Variable o = cross(
      scan, {{cast(queries, v.dtype()), cast(keys, v.dtype()), v, gate}, block.position, block.document});
  return rms_norm(o, gain_, kReglaNormEps);
}

// Keys are mapped by e^k alone, and what each token reads is divided by e^{M_t}, a constant.
Variable Regla::reference(const Block& block) const {
  const Variable& q = block.x[0];
  const Variable& k = block.x[1];
  const Variable g = exp(block.x[3]), r = block.x[4];
  const Variable f =
      add(multiply(scale(r, -1, 1), square(g)), multiply(r, scale(square(scale(g, -1, 1)), -1, 1)));
  const Variable queries = divide(exp(q), exp(max(q, -1, true)));
  const Variable log_f = log(maximum(f, full({1}, kLeastGate, f.dtype(), f.device())));
  const Variable o = channel_decay_reference(queries, exp(k), block.x[2], log_f, config_.scale);
  std::vector<Variable> largest{full({1, dims().heads, 1}, 0, k.dtype(), k.device())}, shrunk;
  for (int64_t t = 0; t < k.dim(0); ++t) {
    largest.push_back(max(concatenate({largest.back(), slice(k.value(), 0, t, t + 1)}, 2), 2, true));
    shrunk.push_back(divide(slice(o, 0, t, t + 1), exp(largest.back())));
  }
  return naive_rms_norm(concatenate(shrunk, 0), gain_, kReglaNormEps);
}

namespace {

struct ReglaTrial {
  ReglaTrial(const Dimensions& dims, int64_t tokens, double scale = 0)
      : store(Dtype::f64), layer({.scale = scale}, dims, {store, ""}), layout(whole_documents({tokens})) {
    store.commit();
    block = random_block(layer, layout);
  }
  Variable run() {
    LocalCrossing cross(layout);
    return layer.forward(block, cross);
  }
  ParameterStore store;
  Regla layer;
  Layout layout;
  Block block;
};

// Two tokens, nothing forgotten, with values (1, 0, ...) and (0, 1, ...): the second token reads their
// weights. By how much their ratio misses e^more once every feature of the first key is larger by `more`.
double error_of_a_larger_key(const Dimensions& d, double more) {
  ReglaTrial trial(d, 2);
  std::vector<double> values(static_cast<size_t>(2 * d.heads * d.value));
  for (int64_t h = 0; h < d.heads; ++h)
    for (int64_t t = 0; t < 2; ++t) values[(t * d.heads + h) * d.value + t] = 1;
  trial.block.x[2] = from_values({2, d.heads, d.value}, Dtype::f64, values);
  trial.block.x[3] = zeros(trial.block.x[3].shape(), Dtype::f64);
  const auto ratios = [&] {
    const Variable y = slice(trial.run(), 0, 1, 2);
    return divide(slice(y, 2, 0, 1), slice(y, 2, 1, 2));
  };
  const Variable plain = ratios(), first = slice(trial.block.x[1], 0, 0, 1);
  trial.block.x[1] = concatenate({scale(first, 1, more), slice(trial.block.x[1], 0, 1, 2)}, 0);
  return largest_difference(divide(ratios(), plain), full(plain.shape(), std::exp(more), Dtype::f64));
}

// E[e^{a x}] over normal x, by the midpoint rule.
double normal_mean_of_exp(double a) {
  const int steps = 4000;
  const double reach = 12, width = 2 * reach / steps;
  double sum = 0;
  for (int i = 0; i < steps; ++i) {
    const double x = -reach + (i + 0.5) * width;
    sum += std::exp(a * x - x * x / 2) * width / std::sqrt(2 * M_PI);
  }
  return sum;
}

}  // namespace

std::vector<Identity> Regla::identities() const {
  return {
      {"r = 1/2 is the plain gate", 1e-15,
       [] {
         const Variable g = negate(square(random_tensor({50, 2, 3}, 1)));
         return largest_difference(refined_log_gate(g, full(g.shape(), 0.5, Dtype::f64)), g);
       }},
      {"the refined gate lies between g^2 and 1 - (1 - g)^2", 1e-15,
       [] {
         const Variable g = negate(square(random_tensor({500}, 1))), r = sigmoid(random_tensor({500}, 2));
         const std::vector<double> f = to_values(exp(refined_log_gate(g, r))), gate = to_values(exp(g));
         double outside = 0;
         for (size_t i = 0; i < f.size(); ++i)
           outside = std::max({outside, gate[i] * gate[i] - f[i], f[i] - gate[i] * (2 - gate[i])});
         return outside;
       }},
      {"its slope is 2 (1 - r) g + 2 r (1 - g): of a gate of 0.99 up to twice that of the plain one", 1e-12,
       [] {
         const Tensor g = full({101}, 0.99, Dtype::f64);
         std::vector<double> r, slope;
         for (int i = 0; i <= 100; ++i) {
           r.push_back(i / 100.0);
           slope.push_back(2 * (1 - r.back()) * 0.99 + 2 * r.back() * 0.01);
         }
         Tape tape;
         const Variable gate = tape.input(g);
         const Variable f = exp(refined_log_gate(log(gate), from_values({101}, Dtype::f64, r)));
         tape.backward(f, full({101}, 1, Dtype::f64));
         return largest_difference(tape.gradient(gate), from_values({101}, Dtype::f64, slope));
       }},
      {"a key whose features are all larger by 2 weighs e^2 as much", 1e-9,
       [d = dims()] { return error_of_a_larger_key(d, 2); }},
      {"products of features of normal queries and keys have variance 1 (theorem 3.1)", 1e-9,
       [] {
         const double size = 64, once = normal_mean_of_exp(1), twice = normal_mean_of_exp(2);
         const double variance = size * (twice * twice - std::pow(once, 4));
         return std::abs(variance * std::pow(variance_factor(64), 2) - 1);
       }},
      {"outputs keep their size however long the text is: the mean square of a head is 1", 1e-6,
       [d = dims()] {
         ReglaTrial trial(d, 300, 1e3);  // so that the eps of the norm does not show
         const Variable size = mean(square(trial.run()), -1);
         return largest_difference(size, full(size.shape(), 1, Dtype::f64));
       }}};
}

}  // namespace weft
