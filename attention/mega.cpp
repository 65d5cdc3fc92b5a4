#include "attention/mega.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/chunks.h"
#include "attention/flash_attention.h"
#include "attention/naive.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/gates.h"
#include "autograd/ops/layer_norm.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/rotary.h"
#include "autograd/ops/softmax.h"

namespace weft {
namespace {

constexpr double kMegaNormEps = 1e-5, kTheta = 10000;
constexpr double kWeightDeviation = 0.02;  // of all projections and biases, as the authors start them

Weighting weighting_of(const std::string& attention) {
  if (attention == "laplace") return Weighting::laplace;
  return attention == "relu2" ? Weighting::relu2 : Weighting::softmax;
}

// docs/benchmarks.md: up to here transforms are the faster form.
constexpr int64_t kFourierIsFaster = 2048;

int64_t longest_by_fft(const std::string& ema, bool kernel) {
  if (ema == "auto") return kernel ? 0 : kFourierIsFaster;
  return ema == "fft" ? std::numeric_limits<int64_t>::max() : 0;
}

// Of each token, how many its document has: (M, C, 1) of ones and zeros -> (M, C, 1).
Scan document_length(int64_t chunk, Dtype dtype, Device device) {
  Scan scan;
  scan.names = {"n"};
  scan.pad = {0};
  scan.chunk = chunk;
  scan.total = true;
  scan.identity = [=] { return State{zeros({1, 1}, dtype, device)}; };
  scan.summarize = [](const Block& b) { return State{sum(b.x[0], 1)}; };
  scan.combine = [](const State& before, const State& after) { return State{add(before[0], after[0])}; };
  scan.apply = [](const Block& b, const State& all) {
    return multiply(b.x[0], reshape(all[0], {all[0].dim(0), 1, 1}));
  };
  return scan;
}

// From the last row to the first.
Variable backwards(const Variable& x) {
  return gather_rows(x, turned_rows(whole_documents({x.dim(0)}), x.device()));
}

}  // namespace

void MegaConfig::fields(FieldVisitor& f) {
  f("causal", causal, "a token sees no later tokens; false: averages and attention go both ways");
  f("attention", attention, "how scores become weights", {.choices = {"softmax", "laplace", "relu2"}});
  f("attention_chunk", attention_chunk,
    "a token sees only keys of its own chunk of this many positions (Mega-chunk); part of the function; "
    "0 = all earlier keys",
    {.unit = "tokens", .min = 0, .max = 1 << 20});
  f("bias", bias, "relative bias of the scores: simple, a table over distances, or rotary",
    {.choices = {"simple", "rotary"}});
  f("positions", positions,
    "distances that have a bias of their own (without attention_chunk); larger distances share the last",
    {.unit = "tokens", .min = 1, .max = 1 << 20});
  f("z_size", z_size, "size of a query or key; 0 = a quarter of the width", {.min = 0, .max = 1 << 20});
  f("hidden", hidden, "size of a value; 0 = twice the width", {.min = 0, .max = 1 << 20});
  f("ema_size", ema_size, "dimensions of the moving average of each channel", {.min = 1, .max = 1 << 20});
  f("ema", ema,
    "how whole documents on one rank are averaged: by chunks (scan), by Fourier transforms (fft), in which "
    "every input affects the rounding of every output, or by the faster of the two (auto)",
    {.choices = {"scan", "fft", "auto"}, .speed_only = true});
  f("chunk", chunk, "tokens of the moving average processed as one matrix product",
    {.unit = "tokens", .min = 1, .speed_only = true});
}

Mega::Mega(Config config, Dimensions dims, const ParameterScope& scope)
    : Mechanism(dims), config_(std::move(config)), ema_(dims.width, config_.ema_size, scope.inner("ema")) {
  const int64_t width = dims.width;
  if (config_.z_size == 0) config_.z_size = std::max<int64_t>(2, width / 8 * 2);
  if (config_.hidden == 0) config_.hidden = 2 * width;
  if (config_.attention_chunk > 0) config_.positions = config_.attention_chunk;
  if (!config_.causal) back_.emplace(width, config_.ema_size, scope.inner("ema.back"));
  const int64_t z = config_.z_size, hidden = config_.hidden;
  if (config_.bias == "rotary" && z % 2 != 0)
    throw Error(Exit::recipe, text("a rotary bias needs an even size of z, got ", z), "z_size",
                "set an even z_size, or bias=simple");
  const Initializer random = Initializer::normal(kWeightDeviation);
  const auto vector = [&](const char* name, const Shape& shape, const Initializer& init) {
    return scope.declare({name, shape, ParameterKind::vector, init});
  };
  const auto zero = Initializer::constant(0), one = Initializer::constant(1);
  norm_gain_ = vector("norm.weight", {width}, one);
  norm_bias_ = vector("norm.bias", {width}, zero);
  omega_ = vector("ema.omega", {width}, Initializer::normal(1));
  value_ = scope.declare({"v.weight", {hidden, width}, ParameterKind::matrix, random});
  value_bias_ = vector("v.bias", {hidden}, zero);
  const std::vector<int64_t> parts{width, z, hidden, width};
  mix_ = scope.declare({"mx.weight", {2 * width + z + hidden, width}, ParameterKind::matrix, random, parts});
  mix_bias_ = vector("mx.bias", {2 * width + z + hidden}, zero);
  out_ = scope.declare({"h.weight", {width, hidden}, ParameterKind::matrix, random});
  out_bias_ = vector("h.bias", {width}, zero);
  scale_ = vector("gamma", {2, z}, random);
  shift_ = vector("beta", {2, z}, zero);
  if (config_.bias == "simple") {
    const int64_t distances = config_.causal ? config_.positions : 2 * config_.positions - 1;
    table_ = vector("bias.table", {1, distances}, random);
  } else {
    query_bias_ = vector("bias.alpha", {1, 1, z}, random);
    key_bias_ = vector("bias.beta", {1, 1, z}, random);
  }
}

std::vector<Input> Mega::inputs() const { return {{"x", "c"}}; }

Variable Mega::keys_seen(const Block& block, Crossing& cross, Dtype dtype) const {
  const Layout& layout = cross.layout();
  const Device device = block.position.device();
  const int64_t chunk = config_.attention_chunk, n = layout.tokens();
  const auto column = [&](const auto& value_at) {
    if (device == Device::meta) return empty({n, 1}, dtype, device);
    std::vector<double> values;
    for (const Segment& s : layout.segments)
      for (int64_t t = s.begin; t < s.end; ++t) values.push_back(static_cast<double>(value_at(t)));
    return from_values({n, 1}, dtype, values, device);
  };
  if (config_.causal) return column([&](int64_t t) { return 1 + (chunk > 0 ? t % chunk : t); });
  const Variable length = cross(document_length(config_.chunk, dtype, device),
                                {{full({n, 1}, 1, dtype, device)}, block.position, block.document});
  if (chunk == 0) return length;
  const Variable left = subtract(length, column([&](int64_t t) { return t / chunk * chunk; }));
  return minimum(left, full({1}, static_cast<double>(chunk), dtype, device));
}

Variable Mega::projected(const Variable& z, int which) const {
  const Dtype wide = wide_of(z.dtype());
  return add(multiply(cast(z, wide), slice(scale_, 0, which, which + 1)), slice(shift_, 0, which, which + 1));
}

// The direction turned by each token's position, (N, 1, Z): the product of a query's and a key's depends on
// their distance alone, so the bias is more features of both.
Variable Mega::rotary_bias(const Parameter& direction, const Block& block, Dtype dtype) const {
  const Variable one = direction;
  const Variable rows = add(one, zeros({block.position.dim(0), 1, 1}, one.dtype(), one.device()));
  return cast(rotary(rows, block.position, kTheta), dtype);
}

Variable Mega::forward(const Block& block, Crossing& cross) const {
  const Variable& x = block.x[0];
  const int64_t n = x.dim(0), width = dims().width, z = config_.z_size, hidden = config_.hidden;
  const Dtype dtype = x.dtype(), wide = wide_of(dtype);
  const Variable normed = layer_norm(x, norm_gain_, norm_bias_, kMegaNormEps), exact = cast(normed, wide);
  const Variable v = silu(linear(normed, value_, value_bias_));
  const bool kernel = ema_.has_kernel(x.device(), dtype);
  const Variable& input = kernel ? normed : exact;
  const int64_t fft_up_to = longest_by_fft(config_.ema, kernel);
  const auto averaged = [&](const DampedEma& ema, bool reverse) {
    return cast(ema(input, block, cross, config_.chunk, fft_up_to, reverse), wide);
  };
  Variable average = averaged(ema_, false);
  if (back_) average = add(average, averaged(*back_, true));
  const Variable mixed = cast(silu(add(average, multiply(exact, omega_))), dtype);
  const std::vector<Variable> parts =
      split_columns(linear(mixed, mix_, mix_bias_), {width, z, hidden, width});
  const Variable shared = silu_gate(parts[1]), gate = silu_gate(parts[2]);

  const bool by_count = config_.attention != "softmax";
  const Variable count = by_count ? keys_seen(block, cross, wide) : Variable();
  Variable q = projected(shared, 0);
  q = by_count ? divide(q, count) : scale(q, 1 / std::sqrt(static_cast<double>(z)));
  q = reshape(cast(q, dtype), {n, 1, z});
  Variable k = reshape(cast(projected(shared, 1), dtype), {n, 1, z});
  if (config_.bias == "rotary") {
    q = concatenate({q, rotary_bias(query_bias_, block, dtype)}, 2);
    k = concatenate({k, rotary_bias(key_bias_, block, dtype)}, 2);
  }
  Merge attend{{.causal = config_.causal,
                .block = config_.attention_chunk,
                .weighting = weighting_of(config_.attention)},
               flash_attention_forward,
               flash_attention_backward};
  if (table_.defined()) attend.bias = table_;
  Variable o = cross(attend, {{q, k, reshape(v, {n, 1, hidden})}, block.position, block.document})[0];
  o = reshape(o, {n, hidden});
  if (by_count) o = cast(multiply(cast(o, wide), count), dtype);  // of a mean the sum
  const Variable read = multiply(o, gate);
  const Variable h = silu(add(parts[3], linear(read, out_, out_bias_)));
  return add(x, multiply(sigmoid(parts[0]), subtract(h, x)));
}

// Weights of all pairs of tokens of a document, (n, n).
Variable Mega::reference_weights(const Variable& q, const Variable& k) const {
  const int64_t n = q.dim(0), z = config_.z_size, chunk = config_.attention_chunk;
  const bool by_count = config_.attention != "softmax";
  const int64_t reach = config_.positions - 1, least = config_.causal ? 0 : -reach;
  std::vector<double> factor, visible, hide;
  std::vector<int32_t> distance;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const int64_t first = chunk > 0 ? i / chunk * chunk : 0;
      const int64_t end = chunk > 0 ? std::min(first + chunk, n) : n, last = config_.causal ? i : end - 1;
      const bool sees = first <= j && j <= last;
      factor.push_back(
          1 / (by_count ? static_cast<double>(last - first + 1) : std::sqrt(static_cast<double>(z))));
      visible.push_back(sees);
      hide.push_back(sees ? 0 : -INFINITY);
      distance.push_back(static_cast<int32_t>(std::clamp<int64_t>(i - j, least, reach) - least));
    }
  const auto matrix = [&](const std::vector<double>& values) {
    return from_values({n, n}, q.dtype(), values);
  };
  Variable bias;
  if (table_.defined()) {
    bias = reshape(gather_rows(reshape(table_, {reach - least + 1, 1}), from_ints(distance)), {n, n});
  } else {
    const Tensor same = from_ints(std::vector<int32_t>(static_cast<size_t>(n), 0));
    const auto turned = [&](const Parameter& direction) {
      return reshape(naive_rotary(gather_rows(direction, same), 0, kTheta), {n, z});
    };
    bias = matmul(turned(query_bias_), turned(key_bias_), {false, true});
  }
  const Variable scores = add(multiply(matmul(q, k, {false, true}), matrix(factor)), bias);
  if (!by_count) return softmax(add(scores, matrix(hide)));
  const Variable weights =
      config_.attention == "relu2"
          ? square(relu(scores))
          : normal_cdf(scale(scores, std::sqrt(4 * M_PI), -std::sqrt(0.5) * std::sqrt(4 * M_PI)));
  return multiply(weights, matrix(visible));
}

Variable Mega::reference(const Block& block) const {
  const Variable& x = block.x[0];
  const int64_t width = dims().width, z = config_.z_size, hidden = config_.hidden;
  const Variable centred = subtract(x, mean(x, 1, true));
  const Variable normed =
      add(multiply(divide(centred, sqrt(scale(mean(square(centred), 1, true), 1, kMegaNormEps))), norm_gain_),
          norm_bias_);
  const Variable v = silu(linear(normed, value_, value_bias_));
  Variable average = ema_.recurrence(normed);
  if (back_) average = add(average, backwards(back_->recurrence(backwards(normed))));
  const Variable mixed = silu(add(average, multiply(normed, omega_)));
  const Variable all = linear(mixed, mix_, mix_bias_);
  const auto part = [&](int64_t begin, int64_t size) { return slice(all, 1, begin, begin + size); };
  const Variable phi = sigmoid(part(0, width)), shared = silu(part(width, z));
  const Variable r = silu(part(width + z, hidden)), c = part(width + z + hidden, width);
  const auto scaled = [&](int64_t row) {
    return add(multiply(shared, slice(scale_, 0, row, row + 1)), slice(shift_, 0, row, row + 1));
  };
  const Variable o = matmul(reference_weights(scaled(0), scaled(1)), v);
  const Variable h = silu(add(c, linear(multiply(r, o), out_, out_bias_)));
  return add(multiply(phi, h), multiply(scale(phi, -1, 1), x));
}

namespace {

struct MegaTrial {
  MegaTrial(const MegaConfig& config, const Dimensions& dims, int64_t tokens)
      : store(Dtype::f64), mechanism(config, dims, {store, ""}), layout(whole_documents({tokens})) {
    store.commit();
    block = {{random_tensor({tokens, dims.width}, 1)}, layout.position, layout.document};
  }
  Variable run() const {
    LocalCrossing cross(layout);
    return mechanism.forward(block, cross);
  }
  ParameterStore store;
  Mega mechanism;
  Layout layout;
  Block block;
};

double deviation_of_averages(const Dimensions& dims, int64_t tokens) {
  ParameterStore store(Dtype::f64);
  const DampedEma ema(dims.width, 4, {store, ""});
  store.commit();
  const Layout layout = whole_documents({tokens});
  const Tensor x = random_tensor({tokens, dims.width}, 1);
  const auto by = [&](int64_t fft_up_to, bool reverse = false) -> Tensor {
    LocalCrossing cross(layout);
    return ema(x, {{}, layout.position, layout.document}, cross, 7, fft_up_to, reverse);
  };
  const std::vector<double> kernel = to_values(ema.kernel(tokens)), in = to_values(x);
  std::vector<double> sums(in.size()), back(in.size());  // over the tokens before, over those behind
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t s = 0; s <= t; ++s)
      for (int64_t c = 0; c < dims.width; ++c) {
        const double weight = kernel[c * tokens + t - s];
        sums[t * dims.width + c] += weight * in[s * dims.width + c];
        back[s * dims.width + c] += weight * in[t * dims.width + c];
      }
  const Tensor convolved = from_values(x.shape(), Dtype::f64, sums), stepped = ema.recurrence(x);
  const Tensor mirrored = from_values(x.shape(), Dtype::f64, back);
  return std::max({largest_difference(by(tokens - 1), stepped), largest_difference(by(tokens), stepped),
                   largest_difference(convolved, stepped), largest_difference(by(tokens - 1, true), mirrored),
                   largest_difference(by(tokens, true), mirrored)});
}

// How far the output of a turned text is from the turned output, once the averages have changed places and
// with them both directions of the bias.
double error_of_the_mirror(const MegaConfig& config, const Dimensions& d) {
  const int64_t tokens = config.attention_chunk > 0 ? 4 * config.attention_chunk : 19;
  MegaTrial plain(config, d, tokens), mirrored(config, d, tokens);
  const auto change = [&](const std::string& name, const std::string& from) {
    mirrored.store.find(name)->master.copy_from(plain.store.find(from)->master);
  };
  for (const std::string name : {"alpha", "beta", "gamma", "delta"}) {
    change("ema." + name, "ema.back." + name);
    change("ema.back." + name, "ema." + name);
  }
  if (config.bias == "simple") {
    const Tensor table = mirrored.store.find("bias.table")->master;
    table.copy_from(backwards(table.reshape({table.numel(), 1})).value().reshape(table.shape()));
  } else {
    change("bias.alpha", "bias.beta");
    change("bias.beta", "bias.alpha");
  }
  mirrored.store.refresh_working();
  mirrored.block.x[0] = backwards(plain.block.x[0]);
  return largest_difference(mirrored.run(), backwards(plain.run()));
}

}  // namespace

std::vector<Identity> Mega::identities() const {
  const Dimensions d = dims();
  const Config config = config_;
  std::vector<Identity> all{
      {"the moving average is a recurrence, a scan and a convolution, by Fourier and from the end too", 1e-12,
       [d] { return deviation_of_averages(d, 23); }},
      {"a chunk as long as the text is full Mega (section 3.5)", 1e-12,
       [d, config] {
         MegaConfig full = config, chunked = config;
         full.attention_chunk = 0;
         full.positions = chunked.attention_chunk = 19;
         return largest_difference(MegaTrial(chunked, d, 19).run(), MegaTrial(full, d, 19).run());
       }},
      {"with the update gate shut the layer is its input (equation 15)", 1e-12,
       [d, config] {
         MegaTrial t(config, d, 19);
         const Parameter bias = t.store.find("mx.bias");
         bias->master.rows(0, d.width).copy_from(full({d.width}, -1e3, Dtype::f64));
         t.store.refresh_working();
         return largest_difference(t.run(), t.block.x[0]);
       }},
  };
  if (!config_.causal)
    all.push_back({"a turned text gives the turned output, the averages and the bias turned too", 1e-12,
                   [d, config] { return error_of_the_mirror(config, d); }});
  return all;
}

}  // namespace weft
