#include "attention/titans_layers.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "attention/initialize.h"
#include "attention/merge_partials.h"
#include "attention/naive.h"
#include "attention/short_convolution.h"
#include "attention/softmax.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/rms_norm.h"
#include "autograd/ops/rotary.h"
#include "autograd/ops/softmax.h"

namespace weft {
namespace {

constexpr double kTitansNormEps = 1e-6;
// A memory that knows nothing of a query answers near zero: its norm bounds and never enlarges.
constexpr double kMemoryNormEps = 1;

// heads of width / heads features, if so configured.
Dimensions with_heads(Dimensions dims, int64_t heads) {
  if (heads == 0) return dims;
  if (dims.width % heads != 0)
    throw Error(Exit::recipe, text(heads, " heads do not divide the width ", dims.width), "heads",
                "choose a divisor");
  dims.heads = dims.kv_heads = heads;
  dims.key = dims.value = dims.width / heads;
  return dims;
}

Variable unit_length(const Variable& x) {
  return multiply(x, reciprocal(sqrt(scale(sum(square(x), -1, true), 1, 1e-6))));
}

}  // namespace

void TitansLayerConfig::fields(FieldVisitor& f) {
  TitansConfig::fields(f);
  f("heads", heads, "number of heads, of width / heads features; 0 = the model's",
    {.unit = "heads", .min = 0, .max = 1 << 20});
  f("persistent", persistent, "learned tokens that every query sees",
    {.unit = "tokens", .min = 1, .max = 1 << 20});
  f("convolution", convolution, "width of the convolution over the memory's projections, from 2; 0 = none",
    {.unit = "tokens", .min = 0, .max = 8, .fixed = true});
  f("position", position, "how attention encodes positions", {.choices = {"none", "rope"}, .fixed = true});
  f("rope_theta", rope_theta, "base of the rotary wavelengths", {.min = 1, .fixed = true});
}

void TitansWindowConfig::fields(FieldVisitor& f) {
  TitansLayerConfig::fields(f);
  f("window", window, "last tokens that attention sees, the token itself included",
    {.unit = "tokens", .min = 1, .max = kLongestWindow});
}

TitansLayer::TitansLayer(const TitansLayerConfig& config, const Dimensions& sizes, Attended attended,
                         bool gate, const ParameterScope& scope)
    : Mechanism(with_heads(sizes, config.heads)),
      config_(config),
      memory_(config, dims(), scope.inner("memory")) {
  if (config.convolution == 1)
    throw Error(Exit::recipe, "a convolution of width 1 mixes no tokens", "convolution", "set 0, or 2 to 8");
  if (config.position == "rope" && dims().key % 2 != 0)
    throw Error(Exit::recipe, text("rotary positions need an even key size, got ", dims().key), "position",
                "set position=none, or another key size");
  const int64_t h = dims().heads, k = h * dims().key, v = h * dims().value, c = dims().width;
  const int64_t width = attended == Attended::tokens ? c : v;
  const auto projection = [&](const char* name, const std::vector<int64_t>& parts, int64_t from) {
    int64_t rows = 0;
    for (const int64_t part : parts) rows += part;
    return scope.declare({name, {rows, from}, ParameterKind::matrix, projection_init(from), parts});
  };
  memory_in_ = projection("memory.in.weight", {k, k, v}, c);
  if (config.convolution > 0)
    convolution_ =
        scope.declare({"memory.conv.weight",
                       {2 * k + v, config.convolution},
                       ParameterKind::vector,
                       Initializer::uniform(1 / std::sqrt(static_cast<double>(config.convolution)))});
  // Keys of these layers are more alike than those of titans: short chunks, too, begin at theta = 1 / (4 C)
  // or below. From e^-3 on, memory as a gate is NaN at its second step.
  const double careful = config.step_limit > 0 ? 0 : -std::log(4 * static_cast<double>(config.chunk));
  std::vector<double> starts;
  for (const Input& input : memory_.inputs())
    if (input.domain == Domain::unit) {
      const bool step = std::string_view(input.name) == "theta";
      starts.insert(starts.end(), static_cast<size_t>(h),
                    step ? std::min(input.start, careful) : input.start);
    }
  memory_gate_ = projection("memory.gate.weight", {h, h, h}, c);
  memory_bias_ =
      scope.declare({"memory.gate.bias", {3 * h}, ParameterKind::vector, Initializer::from(starts)});
  attention_in_ = projection("attention.in.weight", {k, k, v}, width);
  persistent_ = scope.declare(
      {"persistent.weight", {config.persistent, width}, ParameterKind::embedding, Initializer::normal(1)});
  out_ = scope.declare({"out.weight", {c, v}, ParameterKind::matrix, residual_init(v, dims().layers)});
  memory_gain_ = scope.declare({"memory.norm", {v}, ParameterKind::vector, Initializer::constant(1)});
  if (gate)
    attention_gain_ = scope.declare({"attention.norm", {v}, ParameterKind::vector, Initializer::constant(1)});
}

Variable TitansLayer::answered(const Variable& m) const {
  const Variable rows = reshape(m, {m.dim(0), dims().heads * dims().value});
  return rms_norm(rows, memory_gain_, kMemoryNormEps);
}

Variable TitansLayer::naive_answered(const Variable& m) const {
  const Variable rows = reshape(m, {m.dim(0), dims().heads * dims().value});
  return naive_rms_norm(rows, memory_gain_, kMemoryNormEps);
}

Variable TitansLayer::gated(const Variable& y, const Variable& m) const {
  return linear(multiply(rms_norm(y, attention_gain_, kTitansNormEps), sigmoid(answered(m))), out_);
}

Variable TitansLayer::naive_gated(const Variable& y, const Variable& m) const {
  return linear(multiply(naive_rms_norm(y, attention_gain_, kTitansNormEps), sigmoid(naive_answered(m))),
                out_);
}

Variable TitansLayer::packed(const Variable& x) const { return linear(x, memory_in_); }

Variable TitansLayer::directions(const Variable& columns) const {
  return unit_length(reshape(silu(columns), {columns.dim(0), dims().heads, dims().key}));
}

Block TitansLayer::memory_inputs(const Variable& packed, const Variable& x, const Tensor& position,
                                 const Tensor& document) const {
  const std::vector<Variable> columns = split_columns(packed, memory_in_->info.parts);
  const Variable logits = linear(x, memory_gate_, memory_bias_);
  const std::vector<Variable> gates =
      split_columns(sigmoid(cast(logits, wide_of(x.dtype()))), memory_gate_->info.parts);
  const Variable values = reshape(silu(columns[2]), {x.dim(0), dims().heads, dims().value});
  return {{directions(columns[0]), directions(columns[1]), values, gates[0], gates[1], gates[2]},
          position,
          document};
}

Block TitansLayer::memory_block(const Block& block, Crossing& cross) const {
  Variable rows = packed(block.x[0]);
  if (convolves())
    rows = cross(short_convolution(convolution_, cross.layout()), {{rows}, block.position, block.document});
  return memory_inputs(rows, block.x[0], block.position, block.document);
}

Block TitansLayer::naive_memory_block(const Block& block) const {
  Variable rows = packed(block.x[0]);
  if (convolves()) rows = naive_short_convolution(rows, convolution_);
  return memory_inputs(rows, block.x[0], block.position, block.document);
}

Variable TitansLayer::turned(const Variable& x, const Tensor& position) const {
  return config_.position == "rope" ? rotary(x, position, config_.rope_theta) : x;
}

Variable TitansLayer::naive_turned(const Variable& x, int64_t first) const {
  return config_.position == "rope" ? naive_rotary(x, first, config_.rope_theta) : x;
}

Variable TitansLayer::naive_query(const Variable& q, int64_t first) const {
  return concatenate({naive_turned(q, first), q}, 2);
}

Variable TitansLayer::naive_text_key(const Variable& k, int64_t first) const {
  return concatenate({naive_turned(k, first), zeros(k.shape(), k.dtype(), k.device())}, 2);
}

Variable TitansLayer::naive_persistent_key(const Variable& k) const {
  return concatenate({zeros(k.shape(), k.dtype(), k.device()), k}, 2);
}

std::vector<Variable> TitansLayer::attention_inputs(const Variable& x) const {
  const int64_t n = x.dim(0), h = dims().heads;
  const std::vector<Variable> heads = split_columns(linear(x, attention_in_), attention_in_->info.parts);
  return {reshape(heads[0], {n, h, dims().key}), reshape(heads[1], {n, h, dims().key}),
          reshape(heads[2], {n, h, dims().value})};
}

std::vector<Variable> TitansLayer::persistent_inputs() const {
  const std::vector<Variable> x = attention_inputs(persistent_);
  return {x[1], x[2]};
}

double TitansLayer::score_scale() const { return 1 / std::sqrt(static_cast<double>(dims().key)); }

// Attention to the window and to the persistent tokens, merged.
Variable TitansLayer::windowed(const Variable& x, int64_t window, const Block& block, Crossing& cross) const {
  const std::vector<Variable> tokens = attention_inputs(x), persistent = persistent_inputs();
  const Dtype type = wide_of(x.dtype());
  const int64_t value = dims().value;
  const AttentionOptions options{.scale = score_scale()};
  // Wide, since lse rides along.
  const Block wide{{cast(turned(tokens[0], block.position), type),
                    cast(turned(tokens[1], block.position), type), cast(tokens[2], type)},
                   block.position,
                   block.document};
  const Variable near = cross(window_attention(options, window, cross.layout()), wide);
  const auto by_head = [&](const Variable& y) { return permute(cast(y, type), {1, 0, 2}); };
  const Variable scores =
      matmul(scale(by_head(tokens[0]), score_scale()), by_head(persistent[0]), {false, true});  // (H, n, P)
  const Variable always = permute(matmul(softmax(scores), by_head(persistent[1])), {1, 0, 2});
  const Variable lse = log_sum_exp(scores);  // (H, n)
  const Variable near_lse = reshape(slice(near, 2, value, value + 1), {x.dim(0), dims().heads});
  const Variable y = merge_partials(slice(near, 2, 0, value), near_lse, always, permute(lse, {1, 0}))[0];
  return cast(reshape(y, {x.dim(0), dims().heads * value}), x.dtype());
}

Variable TitansLayer::naive_windowed(const Variable& x, int64_t window) const {
  const int64_t n = x.dim(0), h = dims().heads, p = config_.persistent;
  const std::vector<Variable> tokens = attention_inputs(x), persistent = persistent_inputs();
  std::vector<double> bias;
  for (int64_t row = 0; row < h * n; ++row)
    for (int64_t j = 0; j < p + n; ++j) {
      const int64_t distance = row % n - (j - p);
      bias.push_back(j < p || (distance >= 0 && distance < window) ? 0.0 : -INFINITY);
    }
  const Variable keys = concatenate({naive_persistent_key(persistent[0]), naive_text_key(tokens[1], 0)}, 0);
  const Variable y =
      naive_attention(naive_query(tokens[0], 0), keys, concatenate({persistent[1], tokens[2]}, 0),
                      from_values({h, n, p + n}, x.dtype(), bias), score_scale());
  return reshape(y, {n, h * dims().value});
}

MemoryAsGate::MemoryAsGate(const Config& config, const Dimensions& dims, const ParameterScope& scope)
    : TitansLayer(config, dims, Attended::tokens, true, scope), window_(config.window) {}

Variable MemoryAsGate::forward(const Block& block, Crossing& cross) const {
  const Variable& x = block.x[0];
  const Variable y = windowed(x, window_, block, cross);
  const Variable m = memory_.forward(memory_block(block, cross), cross);
  return gated(y, m);
}

Variable MemoryAsGate::reference(const Block& block) const {
  const Variable& x = block.x[0];
  const Variable m = memory_.reference(naive_memory_block(block));
  return naive_gated(naive_windowed(x, window_), m);
}

MemoryAsLayer::MemoryAsLayer(const Config& config, const Dimensions& dims, const ParameterScope& scope)
    : TitansLayer(config, dims, Attended::answers, false, scope), window_(config.window) {}

Variable MemoryAsLayer::forward(const Block& block, Crossing& cross) const {
  const Variable m = memory_.forward(memory_block(block, cross), cross);
  return linear(windowed(answered(m), window_, block, cross), out_);
}

Variable MemoryAsLayer::reference(const Block& block) const {
  const Variable m = memory_.reference(naive_memory_block(block));
  return linear(naive_windowed(naive_answered(m), window_), out_);
}

}  // namespace weft
