#include "attention/moh.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "attention/initialize.h"
#include "attention/naive.h"
#include "attention/softmax.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/rotary.h"
#include "autograd/ops/softmax.h"
#include "autograd/ops/top_k.h"
#include "autograd/planned_device.h"

namespace weft {
namespace {

// Heads of equal length have no deviation.
constexpr double kMohNormEps = 1e-12;

// The same sizes in another number of heads.
Dimensions with_heads(Dimensions d, const MohConfig& config) {
  if (config.heads == 0) return d;
  const int64_t keys = d.heads * d.key, values = d.heads * d.value, heads = config.heads;
  d.heads = heads;
  d.kv_heads = config.kv_heads > 0 ? config.kv_heads : heads;
  if (keys % heads != 0 || values % heads != 0 || heads % d.kv_heads != 0)
    throw Error(Exit::recipe, text(heads, " heads over ", d.kv_heads, " do not divide ", keys, " features"),
                "heads", "choose divisors, of the width and of each other");
  d.key = keys / heads;
  d.value = values / heads;
  return d;
}

Variable ones(int64_t n, int64_t heads, const Variable& like) {
  return full({n, heads}, 1, like.dtype(), like.device());
}

}  // namespace

void MohConfig::fields(FieldVisitor& f) {
  f("heads", heads, "query heads, among which the total key size is divided; 0 = the model's",
    {.min = 0, .max = 1 << 20});
  f("kv_heads", kv_heads, "key-value heads where heads is set; 0 = as many", {.min = 0, .max = 1 << 20});
  f("shared", shared, "number of heads that are always on: the first ones", {.min = 0, .max = 1 << 20});
  f("top_k", top_k, "number of the other heads that each token selects", {.min = 1, .max = 1 << 20});
  f("router", router, "learned: by projections of x; norm: by the norms of the queries, without parameters",
    {.choices = {"learned", "norm"}});
  f("form", form, "weights of a learned router, as in the released code or as in the paper's text",
    {.choices = {"code", "paper"}});
  f("straight_through", straight_through,
    "router=norm: weights of 1 pass on the gradient of the softmax that they replace");
  f("balance_weight", balance_weight, "factor of the balance loss", {.min = 0});
  f("scale", scale, "factor of the scores q k; 0 = 1 / sqrt(key size)", {.min = 0});
  f("position", position, "how positions are encoded", {.choices = {"none", "rope"}});
  f("rope_theta", rope_theta, "base of the rotary wavelengths", {.min = 1});
}

Moh::Moh(Config config, Dimensions dims, const ParameterScope& scope)
    : Mechanism(with_heads(dims, config)), config_(std::move(config)) {
  dims = this->dims();
  if (config_.scale == 0) config_.scale = 1 / std::sqrt(static_cast<double>(dims.key));
  if (config_.shared + config_.top_k > dims.heads)
    throw Error(Exit::recipe,
                text(config_.shared, " shared and ", config_.top_k, " routed heads are more than ",
                     dims.heads, " heads"),
                "top_k", "set shared + top_k <= heads");
  if (config_.position == "rope" && dims.key % 2 != 0)
    throw Error(Exit::recipe, text("rotary positions need an even key size, got ", dims.key), "position",
                "set position=none, or another key size");
  const auto router = [&](const char* name, int64_t to) {
    return scope.declare({name, {to, dims.width}, ParameterKind::vector, Initializer::normal(0.02)});
  };
  const std::vector<int64_t> parts{dims.heads * dims.key, dims.kv_heads * dims.key,
                                   dims.kv_heads * dims.value};
  in_ = scope.declare({"in.weight",
                       {parts[0] + parts[1] + parts[2], dims.width},
                       ParameterKind::matrix,
                       projection_init(dims.width),
                       parts});
  const int64_t values = dims.heads * dims.value;
  out_ = scope.declare(
      {"out.weight", {dims.width, values}, ParameterKind::matrix, residual_init(values, dims.layers)});
  if (!learned()) return;
  router_routed_ = router("router.routed", routed());
  if (config_.shared > 1) router_shared_ = router("router.shared", config_.shared);
  if (config_.shared > 0) router_mix_ = router("router.mix", 2);
}

std::string Moh::warning() const {
  if (!learned() || config_.form != "code" || config_.top_k > 1 || routed() < 2) return {};
  return "with top_k=1 and form=code the routed head has the weight 1 whatever the router says, so only the "
         "balance loss trains the router; set top_k=2 or more, or form=paper";
}

std::vector<Input> Moh::inputs() const { return {{"x", "c"}}; }

Variable Moh::routed_logits(const Variable& x, const Variable& q) const {
  if (learned()) return linear(x, router_routed_);
  const Variable mine = slice(q, 1, config_.shared, dims().heads);
  const Variable length = sqrt(scale(sum(square(cast(mine, x.dtype())), 2), 1, kMohNormEps));
  const Variable apart = square(subtract(length, mean(length, 1, true)));
  const auto freedom = static_cast<double>(std::max<int64_t>(1, routed() - 1));
  return divide(length, sqrt(scale(sum(apart, 1, true), 1 / freedom, kMohNormEps)));
}

Variable Moh::weights(const Variable& x, const Variable& share, const Tensor& chosen) const {
  const int64_t n = x.dim(0), s = config_.shared;
  if (!learned()) {
    // 0 or 1; what is added for the gradient's sake is share - share.
    const Variable on =
        config_.straight_through ? add(subtract(share, share.value()), chosen) : Variable(chosen);
    return s == 0 ? on : concatenate({ones(n, s, x), on}, 1);
  }
  const bool code = config_.form == "code";
  Variable on = multiply(share, chosen);
  if (code) on = scale(divide(on, sum(on, 1, true)), static_cast<double>(config_.top_k));
  if (s == 0) return on;
  Variable always = s == 1 ? ones(n, 1, x) : softmax(linear(x, router_shared_));
  if (code) always = scale(always, static_cast<double>(s));
  const Variable mix = scale(softmax(linear(x, router_mix_)), code ? 2 : 1);
  return concatenate({multiply(always, slice(mix, 1, 0, 1)), multiply(on, slice(mix, 1, 1, 2))}, 1);
}

Tensor Moh::balance(const Variable& share, const Tensor& chosen, Crossing& cross) const {
  const int64_t e = routed();
  const Variable tokens = full({1}, static_cast<double>(share.dim(0)), share.dtype(), share.device());
  const Variable sums = cross.total(concatenate({sum(share, 0), sum(chosen, 0), tokens}, 0));
  const Variable both = sum(multiply(slice(sums, 0, 0, e), slice(sums, 0, e, 2 * e)), 0, true);
  const Variable count = slice(sums, 0, 2 * e, 2 * e + 1);
  const Variable loss = scale(divide(both, square(count)), static_cast<double>(e));
  cross.loss("balance", reshape(loss, {}), config_.balance_weight);
  return slice(sums, 0, e, 2 * e).value();
}

std::vector<bool> Moh::looked_at(const Tensor& times_chosen, const Crossing& cross) const {
  const int64_t groups = dims().kv_heads, heads = dims().heads / groups;
  std::vector<bool> out(static_cast<size_t>(groups), true);
  if (times_chosen.device() != Device::cpu || cross.goes_on()) return out;
  const std::vector<double> times = to_values(times_chosen);
  for (int64_t g = 0; g < groups; ++g) {
    const auto routed = times.begin() + std::max<int64_t>(0, g * heads - config_.shared);
    const bool chosen =
        (g + 1) * heads > config_.shared &&
        std::any_of(routed, times.begin() + (g + 1) * heads - config_.shared, [](double t) { return t > 0; });
    out[static_cast<size_t>(g)] = g * heads < config_.shared || chosen;
  }
  return out;
}

Moh::Routing Moh::route(const Variable& x, const Variable& q, Crossing& cross) const {
  const Variable wide = cast(x, wide_of(x.dtype()));
  const Variable logits = routed_logits(wide, q), share = softmax(logits);
  const Tensor picked = top_k(logits.value(), config_.top_k).indices;
  const Tensor chosen = marks(picked, routed(), share.dtype());
  const Tensor times_chosen = balance(share, chosen, cross);
  Variable active = chosen;
  if (config_.shared > 0) active = concatenate({ones(x.dim(0), config_.shared, wide), chosen}, 1);
  const HeadTokens on = computed_on(x.device()) == Device::cuda ? all_heads(x.dim(0), dims().heads)
                                                                : heads_of(picked, config_.shared, routed());
  return {weights(wide, share, chosen), active.value().to(x.dtype()), on, looked_at(times_chosen, cross)};
}

std::pair<Variable, Variable> Moh::keys_and_values(const Variable& x,
                                                   const std::vector<bool>& looked_at) const {
  const Dimensions& d = dims();
  const int64_t n = x.dim(0), first = d.heads * d.key, keys = d.kv_heads * d.key,
                values = d.kv_heads * d.value;
  if (std::all_of(looked_at.begin(), looked_at.end(), [](bool group) { return group; })) {
    const Variable both = linear_to_heads(x, in_, first, keys + values, all_heads(n, 1));
    const std::vector<Shape> shapes{{n, d.kv_heads, d.key}, {n, d.kv_heads, d.value}};
    const std::vector<Variable> parts = split_columns(reshape(both, {n, keys + values}), shapes);
    return {parts[0], parts[1]};
  }
  const HeadTokens groups = heads_of(looked_at, n, x.device());
  return {linear_to_heads(x, in_, first, d.key, groups),
          linear_to_heads(x, in_, first + keys, d.value, groups)};
}

Variable Moh::forward(const Block& block, Crossing& cross) const {
  const Variable x = block.x[0];
  const Dimensions& d = dims();
  const int64_t n = x.dim(0);
  const auto queries = [&](const HeadTokens& on) { return linear_to_heads(x, in_, 0, d.key, on); };
  Variable q = learned() ? Variable() : queries(all_heads(n, d.heads));
  const Routing routing = route(x, q, cross);
  if (learned()) q = queries(routing.on);
  auto [k, v] = keys_and_values(x, routing.looked_at);
  if (config_.position == "rope") {
    if (!learned()) q = rotary(q, block.position, config_.rope_theta);  // routing has read it
    rotary_in_place(learned() ? std::vector{q, k} : std::vector{k}, block.position, config_.rope_theta);
  }
  Merge attend = softmax_merge({.scale = config_.scale});
  attend.active_share = static_cast<double>(config_.shared + config_.top_k) / static_cast<double>(d.heads);
  const auto y = cross(attend, {{q, k, v, routing.active}, block.position, block.document});
  const Variable weighted = multiply(y[0], cast(reshape(routing.weights, {n, d.heads, 1}), y[0].dtype()));
  return linear_from_heads(weighted, out_, routing.on);
}

// Every head computed and then masked, head by head.
Variable Moh::reference(const Block& block) const {
  const Variable x = block.x[0];
  const Dimensions& d = dims();
  const int64_t n = x.dim(0), s = config_.shared, e = d.heads - s;
  int64_t row = 0;
  const auto project = [&](int64_t heads, int64_t size) {
    const Variable weight = slice(in_, 0, row, row + heads * size);
    row += heads * size;
    return reshape(matmul(x, weight, {false, true}), {n, heads, size});
  };
  Variable q = project(d.heads, d.key), k = project(d.kv_heads, d.key);
  const Variable v = project(d.kv_heads, d.value);

  std::vector<Variable> scores;  // of each routed head, (n, 1)
  for (int64_t h = s; h < d.heads; ++h) {
    if (learned())
      scores.push_back(matmul(x, slice(router_routed_, 0, h - s, h - s + 1), {false, true}));
    else
      scores.push_back(reshape(sqrt(scale(sum(square(slice(q, 1, h, h + 1)), 2), 1, kMohNormEps)), {n, 1}));
  }
  if (!learned()) {
    Variable center = scores[0], variance;
    for (int64_t h = 1; h < e; ++h) center = add(center, scores[h]);
    center = scale(center, 1 / static_cast<double>(e));
    for (int64_t h = 0; h < e; ++h) {
      const Variable apart = square(subtract(scores[h], center));
      variance = h == 0 ? apart : add(variance, apart);
    }
    const Variable deviation =
        sqrt(scale(variance, 1.0 / static_cast<double>(std::max<int64_t>(1, e - 1)), kMohNormEps));
    for (Variable& score : scores) score = divide(score, deviation);
  }
  const Variable score = concatenate(scores, 1), share = softmax(score);
  const std::vector<double> value = to_values(score);
  std::vector<double> picked(value.size());
  for (int64_t t = 0; t < n; ++t) {
    std::vector<int64_t> order(static_cast<size_t>(e));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return value[t * e + a] > value[t * e + b]; });
    for (int64_t i = 0; i < config_.top_k; ++i) picked[t * e + order[i]] = 1;
  }
  const Variable mask = from_values({n, e}, x.dtype(), picked);

  std::vector<Variable> gates;  // (n, 1), of every head
  const bool code = config_.form == "code";
  const Variable always = learned() && s > 1 ? softmax(matmul(x, router_shared_, {false, true}))
                                             : Variable(full({n, s}, 1, x.dtype()));
  const Variable mix = learned() && s > 0 ? softmax(matmul(x, router_mix_, {false, true})) : Variable();
  const Variable kept = multiply(share, mask), mass = sum(kept, 1, true);
  // Without a learned router 1 or 0, with the gradient of the share where it passes straight through.
  const Variable on = learned()                  ? kept
                      : config_.straight_through ? add(mask, subtract(kept, kept.value()))
                                                 : mask;
  for (int64_t h = 0; h < d.heads; ++h) {
    Variable g = h < s ? slice(always, 1, h, h + 1) : slice(on, 1, h - s, h - s + 1);
    if (learned() && code)
      g = h < s ? scale(g, static_cast<double>(s))
                : scale(divide(g, mass), static_cast<double>(config_.top_k));
    if (mix.defined()) g = multiply(g, scale(slice(mix, 1, h < s ? 0 : 1, h < s ? 1 : 2), code ? 2 : 1));
    gates.push_back(g);
  }
  if (config_.position == "rope") {
    q = naive_rotary(q, 0, config_.rope_theta);
    k = naive_rotary(k, 0, config_.rope_theta);
  }
  const Tensor bias = naive_bias(d.heads, n, x.dtype(),
                                 [](int64_t, int64_t i, int64_t j) { return j > i ? -INFINITY : 0.0; });
  const Variable o = naive_attention(q, k, v, bias, config_.scale);
  Variable y;
  for (int64_t h = 0; h < d.heads; ++h) {
    const Variable one = multiply(reshape(slice(o, 1, h, h + 1), {n, d.value}), gates[h]);
    const Variable part = matmul(one, slice(out_, 1, h * d.value, (h + 1) * d.value), {false, true});
    y = h == 0 ? part : add(y, part);
  }
  return y;
}

namespace {

// A layer with random projections and routers that say nothing.
struct MohTrial {
  MohTrial(MohConfig config, const Dimensions& d, int64_t n)
      : store(Dtype::f64, default_device(), 5),
        layer(std::move(config), d, {store, ""}),
        layout(whole_documents({n})) {
    store.commit();
    for (const auto& p : store.entries())
      if (p->info.name.starts_with("router")) p->working.zero();
    x = random_tensor({n, d.width}, 1);
    LocalCrossing cross(layout);
    y = layer.forward({{x}, layout.position, layout.document}, cross);
    balance = to_values(cross.losses()[0].value)[0];
  }
  // The layer as plain attention between its projections.
  Variable dense() {
    const Dimensions& d = layer.dims();
    const int64_t n = x.dim(0);
    const Parameter in = store.find("in.weight");
    const std::vector<Variable> part = split_columns(linear(x, in), in->info.parts);
    ParameterStore none(Dtype::f64);
    const Softmax attention({}, d, {none, ""});
    LocalCrossing cross(layout);
    const Variable o =
        attention.forward({{reshape(part[0], {n, d.heads, d.key}), reshape(part[1], {n, d.kv_heads, d.key}),
                            reshape(part[2], {n, d.kv_heads, d.value})},
                           layout.position,
                           layout.document},
                          cross);
    return linear(reshape(o, {n, d.heads * d.value}), store.find("out.weight"));
  }
  ParameterStore store;
  Moh layer;
  Layout layout;
  Variable x, y;
  double balance = 0;
};

}  // namespace

std::vector<Identity> Moh::identities() const {
  const Dimensions d = dims();
  const MohConfig all{.shared = 1, .top_k = d.heads - 1};
  return {
      {"all heads on and even routers are multi-head attention", 1e-12,
       [=] {
         MohTrial t(all, d, 9);
         return largest_difference(t.y, t.dense());
       }},
      {"all heads on by the lengths of their queries are multi-head attention, to the bit", 0,
       [=] {
         MohConfig config = all;
         config.router = "norm";
         MohTrial t(config, d, 9);
         return largest_difference(t.y, t.dense());
       }},
      {"the balance loss of even routing is the number of routed heads that are on", 1e-12,
       [=] { return std::abs(MohTrial({.shared = 1, .top_k = 2}, d, 9).balance - 2); }},
  };
}

}  // namespace weft
