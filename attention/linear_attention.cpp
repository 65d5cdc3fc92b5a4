#include "attention/linear_attention.h"

#include <cmath>

#include "attention/chunks.h"
#include "attention/flash_attention.h"
#include "attention/in_chunk.h"
#include "attention/linear_run.h"
#include "attention/running_max.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"

namespace weft {

Scan linear_scan(double scale, int64_t chunk, bool gated, int64_t heads, int64_t key, int64_t value,
                 Dtype dtype, Device device) {
  Scan scan;
  scan.names = {"", "S"};
  scan.pad = gated ? std::vector<double>{0, 0, 0, 0} : std::vector<double>{0, 0, 0};
  scan.chunk = chunk;
  scan.decay = true;
  const Dtype type = wide_of(dtype);
  scan.identity = [=] {
    return State{full({1, heads, 1, 1}, 1, type, device), zeros({1, heads, key, value}, type, device)};
  };
  scan.summarize = [=](const Block& b) {
    const Variable k = by_head(b.x[1]), v = by_head(b.x[2]);
    const int64_t chunks = k.dim(0), n = k.dim(2);
    if (!gated) return State{full({chunks, heads, 1, 1}, 1, type, device), matmul(k, v, {true, false})};
    const Variable decay = running_decay(b.x[3]), last = slice(decay, 2, n - 1, n);
    const Variable weight = exp(subtract(last, decay));  // from token j to the end of the chunk
    return State{as_column(exp(last)), matmul(multiply(k, as_column(weight)), v, {true, false})};
  };
  scan.combine = [](const State& before, const State& after) {
    return State{multiply(before[0], after[0]), add(multiply(after[0], before[1]), after[1])};
  };
  scan.apply = [=](const Block& b, const State& prefix) {
    const Variable q = weft::scale(by_head(b.x[0]), scale), k = by_head(b.x[1]), v = by_head(b.x[2]);
    Variable scores = matmul(q, k, {false, true}), from_state = q;
    if (gated) {
      const Variable decay = running_decay(b.x[3]);
      scores = multiply(scores, decay_between(decay, 0));
      from_state = multiply(q, as_column(exp(decay)));
    } else {
      scores = lower_triangle(scores);
    }
    const Variable o = add(matmul(scores, v), matmul(from_state, prefix[1]));
    return by_token(o, b.x[2].dtype());
  };
  scan.kernel.transition = [=](const Block& b, const Layout& layout) -> Variable {
    const auto segments = static_cast<int64_t>(layout.segments.size());
    if (!gated) return full({segments, heads, 1, 1}, 1, type, device);
    return reshape(exp(sum_by_segment(cast(b.x[3], type), layout)), {segments, heads, 1, 1});
  };
  use_linear_run(scan, scale, gated, key, value, dtype);
  return scan;
}

void LinearConfig::fields(FieldVisitor& f) {
  f("scale", scale, "factor of the scores q k; 0 = 1 / sqrt(key size)", {.min = 0});
  f("chunk", chunk, "tokens processed as one matrix product",
    {.unit = "tokens", .min = 1, .speed_only = true});
  f("feature_map", feature_map, "applied to queries and keys", {.choices = FeatureMap::names()});
  f("normalize", normalize, "divide by the sum of the weights (needs a positive feature map)");
}

LinearAttention::LinearAttention(Config config, Dimensions dims, const ParameterScope& scope)
    : Mechanism(dims), config_(std::move(config)), map_(config_.feature_map, dims, scope) {
  if (config_.scale == 0) config_.scale = 1 / std::sqrt(static_cast<double>(dims.key));
  require_equal_heads(dims, "linear attention");
  if (map_.needs_normaliser() && !config_.normalize)
    throw Error(
        Exit::recipe,
        text("the feature map ", config_.feature_map, " is defined only up to a factor for each token"),
        "feature_map", "set normalize=true");
}

std::vector<Input> LinearAttention::inputs() const { return {{"q", "h k"}, {"k", "h k"}, {"v", "h v"}}; }

namespace {

// Smaller sums of weights count as 0. Its square is still a number of the type.
double least_sum(Dtype dtype) { return dtype == Dtype::f64 ? 1e-150 : 1e-18; }

// v with a column of ones: its output is the sum of the weights.
Variable with_ones(const Variable& v) {
  const Tensor ones = full({v.dim(0), v.dim(1), 1}, 1, v.dtype(), v.device());
  return concatenate({v, ones}, 2);
}

// 1, or 0 where the weights sum to nothing, as those of relu may.
Variable any_weight(const Variable& sum) {
  const Variable size = abs(sum.value());
  return minimum(relu(scale(size, 1 / least_sum(size.dtype()), -1)),
                 full({1}, 1, size.dtype(), size.device()));
}

// Where no weight is, 0 and no gradient.
Variable divided(const Variable& o) {
  const int64_t d = o.dim(2) - 1;
  const Variable sum = slice(o, 2, d, d + 1), any = any_weight(sum);
  return multiply(slice(o, 2, 0, d), multiply(any, reciprocal(add(sum, scale(any, -1, 1)))));
}

// Below every exponent of a key, and far enough from all of them to tell.
constexpr double kNoKey = -1e30;

}  // namespace

Variable LinearAttention::forward(const Block& block, Crossing& cross) const {
  Block in = block;
  const int64_t n = block.x[0].dim(0), heads = dims().heads;
  in.x[0] = map_.queries(in.x[0]);
  if (map_.needs_normaliser()) {
    const Variable exponents = map_.key_exponents(in.x[1]);
    const SoFar largest = largest_so_far(max(exponents, -1), kNoKey, config_.chunk, block, cross);
    in.x[1] = exp(subtract(exponents, reshape(largest.now, {n, heads, 1})));
    // 0 at a document's first token, which has no state to shrink, else 1.
    const Variable after = minimum(relu(scale(largest.before.value(), -2 / kNoKey, 1)),
                                   full({1}, 1, exponents.dtype(), exponents.device()));
    const Variable shrinks = multiply(subtract(largest.before, largest.now), after);
    if (gated())
      in.x[3] = add(cast(in.x[3], shrinks.dtype()), shrinks);
    else
      in.x.push_back(shrinks);
    in.x[2] = cast(in.x[2], exponents.dtype());  // what cancels in a quotient has to be exact
  } else {
    in.x[1] = map_.keys(in.x[1]);
  }
  if (config_.normalize) in.x[2] = with_ones(in.x[2]);
  const Scan scan = linear_scan(config_.scale, config_.chunk, gated() || map_.needs_normaliser(), heads,
                                map_.size(), in.x[2].dim(2), in.x[2].dtype(), in.x[2].device());
  const Variable o = cross(scan, in);
  return config_.normalize ? cast(divided(o), block.x[2].dtype()) : o;
}

// Token by token, as the recurrence is written.
Variable LinearAttention::reference(const Block& block) const {
  const Variable q = map_.queries(block.x[0]), k = map_.keys(block.x[1]);
  const Variable v = config_.normalize ? with_ones(block.x[2]) : block.x[2];
  const int64_t n = q.dim(0), h = dims().heads, d = map_.size(), e = v.dim(2);
  Variable s = zeros({h, d, e}, q.dtype(), q.device());
  std::vector<Variable> outputs;
  for (int64_t t = 0; t < n; ++t) {
    const Variable write =
        matmul(reshape(slice(k, 0, t, t + 1), {h, d, 1}), reshape(slice(v, 0, t, t + 1), {h, 1, e}));
    if (gated()) s = multiply(s, reshape(exp(slice(block.x[3], 0, t, t + 1)), {h, 1, 1}));
    s = add(s, write);
    outputs.push_back(
        reshape(scale(matmul(reshape(slice(q, 0, t, t + 1), {h, 1, d}), s), config_.scale), {1, h, e}));
  }
  const Variable o = concatenate(outputs, 0);
  if (!config_.normalize) return o;
  const Variable sum = slice(o, 2, e - 1, e);
  return divide(slice(o, 2, 0, e - 1), add(sum, scale(any_weight(sum), -1, 1)));
}

void LightningConfig::fields(FieldVisitor& f) {
  LinearConfig::fields(f);
  f("decay", decay, "decays of the heads where g is not given: by ALiBi's slopes, or RetNet's",
    {.choices = {"alibi", "retnet"}});
}

Lightning::Lightning(Config config, Dimensions dims, const ParameterScope& scope)
    : SimpleGla(config, dims, scope), decay_(std::move(config.decay)) {}

std::vector<double> Lightning::fixed_input(const std::string& name) const {
  if (name != "g") return {};
  std::vector<double> decay = alibi_slopes(dims().heads);
  for (size_t h = 0; h < decay.size(); ++h)
    decay[h] = decay_ == "retnet" ? std::log1p(-std::exp2(-5 - static_cast<double>(h))) : -decay[h];
  return decay;
}

std::vector<Identity> Lightning::identities() const {
  std::vector<Identity> out = SimpleGla::identities();
  out.push_back(
      {"decays of 6 heads are ALiBi's: of 4 heads, then every other one of 8", 1e-15, [] {
         ParameterStore store(Dtype::f64);
         const Lightning m({}, {.heads = 6, .kv_heads = 6, .key = 2, .value = 2, .width = 4}, {store, ""});
         const std::vector<double> decay = m.fixed_input("g"), power{2, 4, 6, 8, 1, 3};
         double worst = 0;
         for (size_t h = 0; h < 6; ++h) worst = std::max(worst, std::abs(decay[h] + std::exp2(-power[h])));
         return worst;
       }});
  out.push_back({"decays of RetNet are 31/32, 63/64, 127/128", 1e-15, [] {
                   ParameterStore store(Dtype::f64);
                   LightningConfig retnet;
                   retnet.decay = "retnet";
                   const Lightning m(retnet, {.heads = 3, .kv_heads = 3, .key = 2, .value = 2, .width = 4},
                                     {store, ""});
                   double worst = 0, part = 32;
                   for (const double d : m.fixed_input("g")) {
                     worst = std::max(worst, std::abs(std::exp(d) - (part - 1) / part));
                     part *= 2;
                   }
                   return worst;
                 }});
  return out;
}

std::vector<Input> SimpleGla::inputs() const {
  std::vector<Input> inputs = LinearAttention::inputs();
  inputs.push_back({"g", "h", Domain::log_decay});
  return inputs;
}

std::vector<Identity> LinearAttention::identities() const {
  const Dimensions d = dims();
  return {{"rows of favor are orthogonal, size by size", 1e-12,
           [] {
             double worst = 0;
             const std::vector<double> w = orthogonal_rows(10, 5, 4);
             for (int a = 0; a < 10; ++a)
               for (int b = a / 5 * 5; b < a; ++b) {
                 double dot = 0;
                 for (int i = 0; i < 5; ++i) dot += w[a * 5 + i] * w[b * 5 + i];
                 worst = std::max(worst, std::abs(dot));
               }
             return worst;
           }},
          {"products of favor's features average to e^{q k} (Choromanski et al. 2021, lemma 1)", 0.01,
           [] {
             const int64_t draws = 200000, size = 4;
             const std::vector<double> w = orthogonal_rows(draws, size, 4), q{0.5, -0.3, 0.2, 0.1},
                                       k{0.4, 0.1, -0.6, 0.3};
             double product = 0, exact = 0, squares = 0;
             for (int64_t i = 0; i < size; ++i) {
               exact += q[i] * k[i];
               squares += (q[i] * q[i] + k[i] * k[i]) / 2;
             }
             for (int64_t r = 0; r < draws; ++r) {
               double both = 0;
               for (int64_t i = 0; i < size; ++i) both += w[r * size + i] * (q[i] + k[i]);
               product += std::exp(both - squares) / static_cast<double>(draws);
             }
             return std::abs(product / std::exp(exact) - 1);
           }},
          {"orthogonal rows estimate e^{q k} with less than 0.9 of the variance of independent ones", 0.9,
           [] {
             const int64_t draws = 4000, size = 8;
             const std::vector<double> rows = orthogonal_rows(draws * size, size, 4),
                                       free = to_values(random_tensor({draws * size, size}, 5)),
                                       sum{0.4, -0.1, -0.2, 0.3, 0.1, 0.2, -0.4, 0.2};  // q + k
             const auto variance = [&](const std::vector<double>& w) {
               double mean = 0, squares = 0;
               for (int64_t i = 0; i < draws; ++i) {
                 double estimate = 0;
                 for (int64_t r = i * size; r < (i + 1) * size; ++r) {
                   double both = 0;
                   for (int64_t c = 0; c < size; ++c) both += w[r * size + c] * sum[c];
                   estimate += std::exp(both) / size;
                 }
                 mean += estimate / draws;
                 squares += estimate * estimate / draws;
               }
               return squares - mean * mean;
             };
             return variance(rows) / variance(free);
           }},
          {"log weights of lln vary as those of softmax for normal q and k of 64 features", 0.05,
           [] {
             const double a = lln_exponent(64);
             const Variable q = random_tensor({600, 64}, 1), k = random_tensor({600, 64}, 2);
             const std::vector<double> weights =
                 to_values(log(matmul(exp(scale(q, a)), exp(scale(k, a)), {false, true})));
             double mean = 0, variance = 0;
             for (const double x : weights) mean += x / static_cast<double>(weights.size());
             for (const double x : weights)
               variance += (x - mean) * (x - mean) / static_cast<double>(weights.size());
             return std::abs(variance - 1);
           }},
          {"for 64 features lln's exponent is that of its authors' line", 0.03,
           [] {
             const double slope = 0.14855178144710912, offset = -0.35487039130661086;
             return std::abs(lln_exponent(64) / std::sqrt((1 - offset) / (2 * slope)) - 1);
           }},
          {"equals the masked quadratic form (Katharopoulos et al. 2020, eq. 9)", 1e-10, [d] {
             const int64_t n = 37;
             ParameterStore store(Dtype::f64);
             const LinearAttention m({.chunk = 8}, d, {store, ""});
             const Layout layout = whole_documents({n});
             const Block b = random_block(m, layout);
             LocalCrossing cross(layout);
             const Variable q = permute(b.x[0], {1, 0, 2}), k = permute(b.x[1], {1, 0, 2}),
                            v = permute(b.x[2], {1, 0, 2});
             const Variable o = matmul(lower_triangle(matmul(q, k, {false, true})), v);
             return largest_difference(m.forward(b, cross), scale(permute(o, {1, 0, 2}),
                                                                  1 / std::sqrt(static_cast<double>(d.key))));
           }}};
}

std::vector<Identity> SimpleGla::identities() const {
  const Dimensions d = dims();
  return {{"without decay it is linear attention", 1e-10,
           [d] {
             const int64_t n = 37;
             ParameterStore store(Dtype::f64);
             const SimpleGla gla({.chunk = 8}, d, {store, "a."});
             const LinearAttention linear({.chunk = 16}, d, {store, "b."});
             const Layout layout = whole_documents({n});
             Block b = random_block(gla, layout);
             b.x[3] = zeros(b.x[3].shape(), Dtype::f64);
             LocalCrossing first(layout), second(layout);
             const Variable with = gla.forward(b, first);
             b.x.pop_back();
             return largest_difference(with, linear.forward(b, second));
           }},
          {"strong decay stays finite and leaves the own token (no inverse powers)", 1e-12, [d] {
             const int64_t n = 40;
             ParameterStore store(Dtype::f64);
             const SimpleGla gla({.chunk = 16}, d, {store, ""});
             const Layout layout = whole_documents({n});
             Block b = random_block(gla, layout);
             b.x[3] = full(b.x[3].shape(), -1000, Dtype::f64);
             LocalCrossing cross(layout);
             std::vector<double> own;
             const std::vector<double> q = to_values(b.x[0]), k = to_values(b.x[1]), v = to_values(b.x[2]);
             for (int64_t row = 0; row < n * d.heads; ++row) {
               double dot = 0;
               for (int64_t i = 0; i < d.key; ++i) dot += q[row * d.key + i] * k[row * d.key + i];
               for (int64_t i = 0; i < d.value; ++i)
                 own.push_back(dot * v[row * d.value + i] / std::sqrt(static_cast<double>(d.key)));
             }
             return largest_difference(gla.forward(b, cross),
                                       from_values({n, d.heads, d.value}, Dtype::f64, own));
           }}};
}

}  // namespace weft
