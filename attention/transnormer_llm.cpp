#include "attention/transnormer_llm.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "attention/flash_attention.h"
#include "attention/initialize.h"
#include "attention/linear_attention.h"
#include "attention/linear_run.h"
#include "attention/naive.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/gated_rms_norm.h"
#include "autograd/ops/gates.h"
#include "autograd/ops/joined_linear.h"
#include "autograd/ops/layer_norm.h"
#include "autograd/ops/lrpe.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/triangle.h"
#include "autograd/planned_device.h"

namespace weft {
namespace {

constexpr double kNormEps = 1e-6, kLayerNormEps = 1e-5;

Dimensions placed(Dimensions dims, const TransNormerLlmConfig& config) {
  if (config.heads > 0) {
    dims.heads = dims.kv_heads = config.heads;
    dims.key = dims.value = dims.width / config.heads;
    if (dims.width % config.heads != 0 && (config.key == 0 || config.value == 0))
      throw Error(Exit::recipe, text(config.heads, " heads do not divide the width ", dims.width), "heads",
                  "choose a divisor, or set key and value");
  }
  if (config.key > 0) dims.key = config.key;
  if (config.value > 0) dims.value = config.value;
  if (config.layer >= 0) dims.layer = config.layer;
  if (config.layers > 0) dims.layers = config.layers;
  if (dims.layer >= dims.layers)
    throw Error(Exit::recipe, text("layer ", dims.layer, " of ", dims.layers), "layer",
                "layers count from 0; set layers too");
  return dims;
}

std::vector<double> first_theta(int64_t heads, int64_t size) {
  std::vector<double> theta;
  const auto channels = static_cast<double>(heads * size);
  for (int64_t i = 0; i < heads * size; ++i)
    theta.push_back(std::pow(10000, -2 * static_cast<double>(i) / channels));
  return theta;
}

// The number of tokens up to each of a chunk: (M, C, 1) of ones and zeros -> (M, C, 1).
Scan count_scan(int64_t chunk, Dtype dtype, Device device) {
  Scan scan;
  scan.names = {"", "t"};
  scan.pad = {0};
  scan.chunk = chunk;
  scan.decay = true;  // by 1, since such states are folded in one kernel
  scan.identity = [=] { return State{full({1, 1}, 1, dtype, device), zeros({1, 1}, dtype, device)}; };
  scan.summarize = [=](const Block& b) {
    return State{full({b.x[0].dim(0), 1}, 1, dtype, device), sum(b.x[0], 1)};
  };
  scan.combine = [](const State& before, const State& after) {
    return State{multiply(before[0], after[0]), add(multiply(after[0], before[1]), after[1])};
  };
  scan.apply = [](const Block& b, const State& prefix) {
    return add(cumulative_sum(b.x[0], 1), reshape(prefix[1], {prefix[1].dim(0), 1, 1}));
  };
  return scan;
}

}  // namespace

void TransNormerLlmConfig::fields(FieldVisitor& f) {
  f("heads", heads, "number of heads, by default of width / heads features; 0 = the model's",
    {.unit = "heads", .min = 0, .max = 1 << 20});
  f("key", key, "features of a query or key; 0 = see heads", {.unit = "features", .min = 0, .max = 1 << 20});
  f("value", value, "features of a value; 0 = see heads", {.unit = "features", .min = 0, .max = 1 << 20});
  f("layer", layer, "index of the layer, from 0; -1 = its place in the model", {.min = -1, .max = 1 << 20});
  f("layers", layers, "number of layers of the model; 0 = the model's", {.min = 0, .max = 1 << 20});
  f("chunk", chunk, "tokens processed as one matrix product",
    {.unit = "tokens", .min = 1, .speed_only = true});
  f("form", form, "layer of TransNormerLLM, or of TNL with Lightning Attention",
    {.choices = {"llm", "lightning"}});
  f("decay", decay, "table of decays: that of the released code, or that of the paper's text",
    {.choices = {"code", "paper"}});
  f("phase", phase, "relative positions by LRPE in layer 0");
}

TransNormerLlm::TransNormerLlm(const Config& config, const Dimensions& sizes, const ParameterScope& scope)
    : Mechanism(placed(sizes, config)), config_(config), store_(scope.store()) {
  const auto& [heads, kv_heads, key, value, width, layer, layers] = dims();
  require_equal_heads(dims(), "TransNormerLLM");
  const auto projection = [&, width = width](const char* name, int64_t size) {
    return scope.declare({name, {size, width}, ParameterKind::matrix, projection_init(width)});
  };
  q_ = projection("q.weight", heads * key);
  k_ = projection("k.weight", heads * key);
  v_ = projection("v.weight", heads * value);
  if (lightning()) {
    const auto vector = [&, size = heads * value](const char* name, double start) {
      return scope.declare({name, {size}, ParameterKind::vector, Initializer::constant(start)});
    };
    norm_gain_ = vector("norm.weight", 1);
    norm_bias_ = vector("norm.bias", 0);
    gate_ = projection("gate.down.weight", value);
    gate_up_ = scope.declare(
        {"gate.up.weight", {heads * value, value}, ParameterKind::matrix, projection_init(value)});
  } else {
    gate_ = projection("u.weight", heads * value);
  }
  out_ = scope.declare(
      {"out.weight", {width, heads * value}, ParameterKind::matrix, residual_init(heads * value, layers)});
  if (config.phase && layer == 0)
    theta_ = scope.declare(
        {"theta", {heads, key}, ParameterKind::vector, Initializer::from(first_theta(heads, key))});
}

std::vector<double> tnl_decay(int64_t heads, int64_t layer, int64_t layers, bool as_in_paper) {
  std::vector<double> slope = alibi_slopes(heads);
  const auto l = static_cast<double>(layer);
  for (int64_t h = 0; h < heads; ++h) {
    double& s = slope[static_cast<size_t>(h)];
    if (as_in_paper)
      s = 8 * static_cast<double>(h) / static_cast<double>(heads) *
          (1 - (l + 1) / static_cast<double>(layers));
    else
      s *= 1 - (layers > 1 ? l / static_cast<double>(layers - 1) : 0) + 1e-5;
    s = -s;
  }
  return slope;
}

std::vector<double> TransNormerLlm::fixed_input(const std::string& name) const {
  if (name != "g") return {};
  return tnl_decay(dims().heads, dims().layer, dims().layers, config_.decay == "paper");
}

std::vector<Variable> TransNormerLlm::project(const Variable& x) const {
  const auto& [heads, kv_heads, key, value, width, layer, layers] = dims();
  const int64_t n = x.dim(0);
  const Shape of_key{n, heads, key}, of_value{n, heads, value};
  // Columns of the one product: first those behind a SiLU.
  const std::vector<Shape> active =
      lightning() ? std::vector{of_key, of_key, of_value} : std::vector{of_key, of_key};
  int64_t columns = 0;
  for (const Shape& shape : active) columns += shape.product(1, 3);
  std::vector<Shape> shapes{{n, columns}};
  if (!lightning()) shapes.push_back(of_value);
  shapes.push_back({n, gate_->info.shape[0]});
  const std::vector<Variable> parts = split_columns(joined_linear(x, store_, {q_, k_, v_, gate_}), shapes);
  std::vector<Variable> out = split_columns(silu_gate(parts[0]), active);
  out.insert(out.end(), parts.begin() + 1, parts.end());
  return out;
}

Variable TransNormerLlm::finish(const Variable& o, const Variable& gate, Dtype dtype) const {
  const Variable all = reshape(o, {o.dim(0), dims().heads * dims().value});
  if (!lightning()) return linear(cast(gated_rms_norm(all, cast(gate, all.dtype()), kNormEps), dtype), out_);
  const Variable normed = layer_norm(all, norm_gain_, norm_bias_, kLayerNormEps),
                 open = cast(linear(gate, gate_up_), normed.dtype());
  return linear(cast(multiply(normed, sigmoid(open)), dtype), out_);
}

Variable TransNormerLlm::forward(const Block& block, Crossing& cross) const {
  const Variable& x = block.x[0];
  const Dtype wide = wide_of(x.dtype());
  std::vector<Variable> in = project(x);
  const Variable gate = in.back();
  in.pop_back();
  const int64_t features = (theta_.defined() ? 2 : 1) * dims().key;
  Scan scan = linear_scan(1, config_.chunk, true, dims().heads, features, dims().value, wide, x.device());
  // By chunks, and over ranks by kernels too, q, k and v are read more than once; and theta's gradient is a
  // difference of sums that grow with the position, of which only the part in the distance remains. Both need
  // gradients that are not yet rounded. On a CPU that costs nothing, since its kernel computes wide in any
  // case. A GPU's fast kernel takes bf16 and gives gradients in it, but in f32 where theta needs it: for
  // features that are wide. (In other layers, over ranks, gradients lie up to 5 % off those of one rank.)
  if (theta_.defined()) use_linear_run(scan, 1, true, features, dims().value, wide, true);
  const Device device = computed_on(x.device());
  if (device == Device::cpu || !scan.kernel.on(device))
    for (Variable& each : in) each = cast(each, wide);
  if (theta_.defined()) {
    const Variable position =
        cross(count_scan(config_.chunk, wide, x.device()),
              {{full({x.dim(0), 1}, 1, wide, x.device())}, block.position, block.document});
    const std::vector<Variable> turned = lrpe_features({in[0], in[1]}, theta_, position, true);
    std::copy(turned.begin(), turned.end(), in.begin());
  }
  in.emplace_back(decays_("g", fixed_input("g"), x.dim(0), wide, x.device()));
  const Variable o = cross(scan, {std::move(in), block.position, block.document});
  return finish(o, gate, x.dtype());
}

// The weights of each head as a matrix, the cosine of the distance in it.
Variable TransNormerLlm::reference(const Block& block) const {
  const Variable& x = block.x[0];
  const auto& [heads, kv_heads, key, value, width, layer, layers] = dims();
  const int64_t n = x.dim(0);
  const auto projected = [&, heads = heads](const Parameter& weight, int64_t size) {
    return reshape(linear(x, weight), {x.dim(0), heads, size});
  };
  const Variable values = projected(v_, value);
  const std::vector<Variable> in{silu(projected(q_, key)), silu(projected(k_, key)),
                                 lightning() ? silu(values) : values, linear(x, gate_)};
  const std::vector<double> log_decay = fixed_input("g");
  const auto distances = [&, n = n](const auto& value_at) {
    std::vector<double> all;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) all.push_back(value_at(static_cast<double>(i - j)));
    return all;
  };
  std::vector<Variable> outputs;
  for (int64_t h = 0; h < heads; ++h) {
    const Variable q = slice(in[0], 1, h, h + 1), k = permute(slice(in[1], 1, h, h + 1), {1, 0, 2});
    Variable products = multiply(q, k);  // (n, n, Dk)
    if (theta_.defined()) {
      const Tensor apart = from_values({n, n, 1}, x.dtype(), distances([](double d) { return d; }));
      products = multiply(products, cos(multiply(apart, reshape(slice(theta_, 0, h, h + 1), {1, 1, key}))));
    }
    const double g = log_decay[static_cast<size_t>(h)];
    const Tensor decay =
        from_values({n, n}, x.dtype(), distances([g](double d) { return d < 0 ? 0 : std::exp(g * d); }));
    const Variable v = reshape(slice(in[2], 1, h, h + 1), {n, value});
    outputs.push_back(matmul(multiply(sum(products, 2), decay), v));
  }
  const Variable o = concatenate(outputs, 1);
  if (lightning()) {
    const Variable centred = subtract(o, mean(o, 1, true));
    const Variable deviation = sqrt(scale(mean(square(centred), 1, true), 1, kLayerNormEps));
    const Variable normed = add(multiply(divide(centred, deviation), norm_gain_), norm_bias_);
    return linear(multiply(normed, sigmoid(linear(in[3], gate_up_))), out_);
  }
  const Variable one = full({heads * value}, 1, x.dtype());
  return linear(multiply(naive_rms_norm(o, one, kNormEps), in[3]), out_);
}

namespace {

using Numbers = std::vector<double>;

// W x, W (rows, size) row by row.
Numbers product(const Numbers& w, const Numbers& x) {
  Numbers y(w.size() / x.size());
  for (size_t i = 0; i < w.size(); ++i) y[i / x.size()] += w[i] * x[i % x.size()];
  return y;
}

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

// How far form=lightning is from numbers computed without any op of the tape. With one token there is neither
// decay nor phase.
double first_token_by_hand(const Dimensions& d) {
  ParameterStore store(Dtype::f64);
  const TransNormerLlm layer({.form = "lightning"}, d, {store, ""});
  store.commit();
  const Layout layout = whole_documents({1});
  const Tensor x = random_tensor({1, d.width}, 1);
  LocalCrossing cross(layout);
  const Variable y = layer.forward({{x}, layout.position, layout.document}, cross);

  const Numbers in = to_values(x);
  const auto projected = [&](const char* name, const Numbers& of) {
    return product(to_values(store.find(name)->master), of);
  };
  const auto swish = [](Numbers z) {
    for (double& s : z) s *= logistic(s);
    return z;
  };
  const Numbers q = swish(projected("q.weight", in)), k = swish(projected("k.weight", in));
  Numbers o = swish(projected("v.weight", in));
  const auto size = static_cast<double>(o.size());
  double sum = 0, squares = 0;
  for (size_t i = 0; i < o.size(); ++i) {
    const size_t head = i / static_cast<size_t>(d.value), first = head * static_cast<size_t>(d.key);
    double score = 0;
    for (size_t c = first; c < first + static_cast<size_t>(d.key); ++c) score += q[c] * k[c];
    o[i] *= score;
    sum += o[i] / size;
  }
  for (const double s : o) squares += (s - sum) * (s - sum) / size;
  const Numbers gate = projected("gate.up.weight", projected("gate.down.weight", in));
  for (size_t i = 0; i < o.size(); ++i)
    o[i] = (o[i] - sum) / std::sqrt(squares + kLayerNormEps) * logistic(gate[i]);
  return largest_difference(y, from_values(y.shape(), Dtype::f64, projected("out.weight", o)));
}

}  // namespace

std::vector<Identity> TransNormerLlm::identities() const {
  return {
      {"[x cos, x sin] features give sum_c q_c k_c cos((t - s) theta_c), a million tokens later too", 1e-9,
       [] {
         const Tensor q = random_tensor({5, 2, 3}, 1), k = random_tensor({5, 2, 3}, 2);
         const Tensor theta = random_tensor({2, 3}, 3),
                      apart = from_values({5, 1, 1}, Dtype::f64, {7, 6, 5, 4, 3});
         const Variable expected = sum(multiply(multiply(q, k), cos(multiply(apart, theta))), 2);
         double worst = 0;
         for (const double s : {2, 1000000}) {
           const Tensor at = full({5, 1}, s, Dtype::f64);
           const Variable features = multiply(lrpe_features({q}, theta, add(at, reshape(apart, {5, 1})))[0],
                                              lrpe_features({k}, theta, at)[0]);
           worst = std::max(worst, largest_difference(sum(features, 2), expected));
         }
         return worst;
       }},
      {"the code's decays of 8 heads: layer 0 from e^{-1/2} to e^{-1/256}, the last e^{-1e-5 s_h}", 1e-12,
       [] {
         const std::vector<double> first = tnl_decay(8, 0, 4, false), last = tnl_decay(8, 3, 4, false);
         double worst = 0;
         for (int h = 0; h < 8; ++h) {
           const double slope = std::pow(2, -(h + 1));
           worst =
               std::max({worst, std::abs(first[h] + slope * (1 + 1e-5)), std::abs(last[h] + slope * 1e-5)});
         }
         return worst;
       }},
      {"the paper's decays of 8 heads: of 4 layers the first from 1 to e^{-7 3/4}, the last all 1", 1e-12,
       [] {
         double worst = 0;
         for (int64_t l = 0; l < 4; ++l)
           for (int h = 0; h < 8; ++h)
             worst = std::max(
                 worst, std::abs(tnl_decay(8, l, 4, true)[h] + h * (1 - static_cast<double>(l + 1) / 4)));
         return worst;
       }},
      {"the first token of form=lightning by hand: o = (silu(q) . silu(k)) silu(v), a layer norm over all "
       "heads, times sigmoid(x W_1 W_2)",
       1e-12, [d = dims()] { return first_token_by_hand(d); }}};
}

}  // namespace weft
