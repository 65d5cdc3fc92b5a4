#include "layers/attention_layer.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "attention/initialize.h"
#include "attention/short_convolution.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/gates.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/rms_norm.h"

namespace weft {
namespace {

// Log decays start near -1/16 of log 2 a token and stay there until learning says otherwise: GLA's gate (Yang
// et al. 2024, which divides by the same 16) for every mechanism. The papers of Mamba-2 and Gated DeltaNet
// have -e^a softplus(logit + b) a head, ReGLA's transcriptions no divisor.
constexpr double kDecayTemperature = 16;

// Queries, keys and values are convolved, as in GLA, ReGLA and the delta rules; a gate of each channel is its
// token's.
bool convolved(const Input& input) {
  return input.domain == Domain::real || input.domain == Domain::direction;
}

// Decays and strengths are in f32 (f64).
Variable in_domain(const Variable& x, Domain domain) {
  switch (domain) {
    case Domain::real: return x;
    case Domain::log_decay: return log_sigmoid_gate(x, kDecayTemperature);
    case Domain::unit: return sigmoid_gate(x);
    case Domain::positive: return softplus_gate(x);
    case Domain::direction: {  // x / sqrt(|x|^2 + 1e-6)
      const auto size = static_cast<double>(x.dim(-1));
      return rms_norm(x, full({x.dim(-1)}, 1 / std::sqrt(size), wide_of(x.dtype()), x.device()), 1e-6 / size);
    }
  }
  return x;
}

}  // namespace

AttentionLayer::AttentionLayer(const AttentionLayerConfig& config, const ParameterScope& scope)
    : config_(config),
      mechanism_(
          find_mechanism(config.mechanism).make(config.attributes, config.dims, scope.inner("mechanism"))) {
  for (const Input& input : mechanism_->inputs()) {
    const std::string_view size = input.dims;
    std::vector<double> values = size == "c" ? std::vector<double>() : mechanism_->fixed_input(input.name);
    const Source source = size == "c"       ? Source::x
                          : !values.empty() ? Source::fixed
                          : size == "h"     ? Source::gate
                                            : Source::heads;
    inputs_.push_back({input, source, std::move(values)});
  }
  const Dimensions& dims = config.dims;
  std::vector<int64_t> parts;
  int64_t packed = 0, filtered = 0;
  std::vector<int64_t> gate_parts;
  std::vector<double> gates;  // where each starts
  for (const Sourced& input : inputs_) {
    const int64_t size = input_shape(input, dims, 1).numel();
    if (input.source == Source::heads) {
      parts.push_back(size);
      CHECK(!convolved(input) || filtered == packed, input.name, " stands behind a gate");
      packed += size;
      if (convolved(input)) filtered += size;
    }
    if (input.source == Source::gate) {
      gate_parts.push_back(size);
      gates.insert(gates.end(), static_cast<size_t>(size), input.start);
    }
  }
  if (packed > 0)
    projection_ = scope.declare(
        {"in.weight", {packed, dims.width}, ParameterKind::matrix, projection_init(dims.width), parts});
  if (const auto count = static_cast<int64_t>(gates.size()); count > 0) {
    gates_ = scope.declare(
        {"gate.weight", {count, dims.width}, ParameterKind::matrix, projection_init(dims.width), gate_parts});
    gate_bias_ = scope.declare({"gate.bias", {count}, ParameterKind::vector, Initializer::from(gates)});
  }
  if (config.short_conv > 0 && packed > 0)
    conv_ = scope.declare({"conv.weight",
                           {filtered, config.short_conv},
                           ParameterKind::vector,
                           Initializer::uniform(1 / std::sqrt(static_cast<double>(config.short_conv)))});
  if (mechanism_->normalize_output())
    output_gain_ =
        scope.declare({"out_norm.weight", {dims.value}, ParameterKind::vector, Initializer::constant(1)});
  if (packed > 0)  // a mechanism that takes x has its own output projection
    output_ = scope.declare({"out.weight",
                             {dims.width, dims.heads * dims.value},
                             ParameterKind::matrix,
                             residual_init(dims.heads * dims.value, dims.layers)});
}

Variable AttentionLayer::convolve(const Variable& packed, Crossing& cross) const {
  const Layout& layout = cross.layout();
  const int64_t filtered = conv_->info.shape[0], all = packed.dim(1);
  const auto convolved = [&](const Variable& x) {
    return silu(cross(short_convolution(conv_, layout), {{x}, layout.position, layout.document}));
  };
  if (filtered == all) return convolved(packed);
  const std::vector<Variable> parts = split_columns(packed, std::vector<int64_t>{filtered, all - filtered});
  return concatenate({convolved(parts[0]), parts[1]}, 1);
}

Variable AttentionLayer::attend(const Variable& projected, const Variable& x, Crossing& cross) const {
  const Tensor& like = projected.defined() ? projected.value() : x.value();
  const int64_t n = like.dim(0);
  const Dimensions& dims = config_.dims;
  Block block{{}, cross.layout().position, cross.layout().document};
  std::vector<Variable> heads, gates;
  if (projected.defined()) {
    const Variable convolved = conv_.defined() ? convolve(projected, cross) : Variable();
    const Variable& packed = conv_.defined() ? convolved : projected;
    block.own = packed.value().unique();  // whoever calls this does not read it again
    std::vector<Shape> shapes;
    for (const Sourced& input : inputs_)
      if (input.source == Source::heads) shapes.push_back(input_shape(input, dims, n));
    heads = split_columns(packed, shapes);
  }
  if (gates_.defined()) {
    const Variable all = linear(x, gates_, gate_bias_);
    gates =
        split_columns(all, std::vector<int64_t>(static_cast<size_t>(all.dim(1) / dims.heads), dims.heads));
  }
  size_t head = 0, gate = 0;
  for (const Sourced& input : inputs_) {
    switch (input.source) {
      case Source::x: block.x.push_back(x); break;
      case Source::heads: block.x.push_back(in_domain(heads[head++], input.domain)); break;
      case Source::gate: block.x.push_back(in_domain(gates[gate++], input.domain)); break;
      case Source::fixed:
        block.x.push_back(fixed_(input.name, input.values, n, wide_of(like.dtype()), like.device()));
        break;
    }
  }
  return mechanism_->forward(block, cross);
}

Variable AttentionLayer::operator()(const Variable& x, Crossing& cross) const {
  Variable y = attend(projection_.defined() ? linear(x, projection_) : Variable(), x, cross);
  if (output_gain_.defined()) y = rms_norm(y, output_gain_, config_.norm_eps);
  return output_.defined() ? linear(reshape(y, {x.dim(0), output_->info.shape[1]}), output_) : y;
}

bool AttentionLayer::fuses(const Tensor& x, const Norm& norm) const {
  return projection_.defined() && norm.is_rms() && few_rows_fused(x, projection_->working, norm.around()) &&
         std::none_of(inputs_.begin(), inputs_.end(), [](const Sourced& i) { return i.source == Source::x; });
}

Tensor AttentionLayer::step(const Tensor& x, const Norm& norm, Crossing& cross) const {
  const Variable y = attend(few_rows_linear(x, projection_->working, norm.around()),
                            gates_.defined() ? norm(x) : Variable(), cross);
  Around around{.residual = x};
  if (output_gain_.defined())
    around = {.norm = true,
              .norm_size = config_.dims.value,
              .gain = output_gain_->working,
              .eps = config_.norm_eps,
              .residual = x};
  return few_rows_linear(reshape(y, {x.dim(0), output_->info.shape[1]}), output_->working, around);
}

}  // namespace weft
