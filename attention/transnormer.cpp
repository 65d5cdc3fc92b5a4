#include "attention/transnormer.h"

#include <cmath>

#include "attention/linear_attention.h"
#include "attention/naive.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/rms_norm.h"
#include "autograd/ops/triangle.h"

namespace weft {
namespace {

constexpr double kTransNormerEps = 1e-6;

}  // namespace

void TransNormerConfig::fields(FieldVisitor& f) {
  f("scale", scale, "factor of the scores q k; 0 = 1 / sqrt(key size)", {.min = 0});
  f("chunk", chunk, "tokens processed as one matrix product",
    {.unit = "tokens", .min = 1, .speed_only = true});
  f("feature_map", feature_map, "applied to queries and keys", {.choices = FeatureMap::names()});
  f("norm_per_head", norm_per_head, "normalise each head by itself instead of all heads together");
}

TransNormer::TransNormer(Config config, Dimensions dims, const ParameterScope& scope)
    : Mechanism(dims), config_(std::move(config)), map_(config_.feature_map, dims, scope) {
  if (config_.scale == 0) config_.scale = 1 / std::sqrt(static_cast<double>(dims.key));
  require_equal_heads(dims, "TransNormer");
  if (map_.needs_normaliser())
    throw Error(Exit::recipe, text("the feature map ", config_.feature_map, " needs a denominator"),
                "feature_map", "choose elu or relu, or the mechanism linear");
  const int64_t channels = config_.norm_per_head ? dims.value : dims.heads * dims.value;
  gain_ = scope.declare({"norm", {channels}, ParameterKind::vector, Initializer::constant(1)});
}

std::vector<Input> TransNormer::inputs() const { return {{"q", "h k"}, {"k", "h k"}, {"v", "h v"}}; }

Variable TransNormer::forward(const Block& block, Crossing& cross) const {
  const Variable& v = block.x[2];
  const int64_t h = dims().heads, e = dims().value;
  const Scan scan =
      linear_scan(config_.scale, config_.chunk, false, h, map_.size(), e, v.dtype(), v.device());
  const Variable o =
      cross(scan, {{map_.queries(block.x[0]), map_.keys(block.x[1]), v}, block.position, block.document});
  if (config_.norm_per_head) return rms_norm(o, gain_, kTransNormerEps);
  return reshape(rms_norm(reshape(o, {o.dim(0), h * e}), gain_, kTransNormerEps), o.shape());
}

// As the masked product of matrices.
Variable TransNormer::reference(const Block& block) const {
  const int64_t n = block.x[0].dim(0), h = dims().heads, e = dims().value;
  const Variable q = permute(map_.queries(block.x[0]), {1, 0, 2}),
                 k = permute(map_.keys(block.x[1]), {1, 0, 2}), v = permute(block.x[2], {1, 0, 2});
  const Variable weights = lower_triangle(scale(matmul(q, k, {false, true}), config_.scale));
  const Variable o = permute(matmul(weights, v), {1, 0, 2});
  if (config_.norm_per_head) return naive_rms_norm(o, gain_, kTransNormerEps);
  return reshape(naive_rms_norm(reshape(o, {n, h * e}), gain_, kTransNormerEps), {n, h, e});
}

namespace {

// Length of the gradient of the keys, which are those of the block times a factor.
double key_gradient(const Mechanism& m, const Block& block, const Layout& layout, double factor) {
  Tape tape;
  Block b = block;
  b.x[1] = tape.input(scale(block.x[1], factor).value());
  LocalCrossing cross(layout);
  const Variable y = m.forward(b, cross);
  tape.backward(y, random_tensor(y.shape(), 9));
  double sum = 0;
  for (const double g : to_values(tape.gradient(b.x[1]))) sum += g * g;
  return std::sqrt(sum);
}

}  // namespace

std::vector<Identity> TransNormer::identities() const {
  const Dimensions d = dims();
  return {{"outputs do not change with the size of the keys, if the map keeps it (the eps aside)", 1e-8,
           [d] {
             ParameterStore store(Dtype::f64);
             const TransNormer m({.scale = 1e6, .feature_map = "identity"}, d, {store, ""});
             store.commit();
             const Layout layout = whole_documents({37});
             Block b = random_block(m, layout);
             LocalCrossing first(layout), second(layout);
             const Variable y = m.forward(b, first);
             b.x[1] = scale(b.x[1], 100);
             return largest_difference(m.forward(b, second), y);
           }},
          {"where the weights go to 0, the gradient stays below a thousandth of that with a denominator",
           1e-3, [d] {
             ParameterStore store(Dtype::f64);
             const TransNormer norm({.feature_map = "relu"}, d, {store, "a."});
             const LinearAttention divided({.feature_map = "relu", .normalize = true}, d, {store, "b."});
             store.commit();
             const Layout layout = whole_documents({20});
             Block b = random_block(norm, layout);
             for (int i = 0; i < 2; ++i) b.x[i] = abs(b.x[i]);  // no sum of weights is 0
             return key_gradient(norm, b, layout, 1e-9) / key_gradient(divided, b, layout, 1e-9);
           }}};
}

}  // namespace weft
