#include "attention/regla.h"

#include <algorithm>
#include <cmath>

#include "attention/gla.h"
#include "attention/in_chunk.h"
#include "attention/naive.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/rms_norm.h"

namespace weft {
namespace {

constexpr double kNormEps = 1e-6;

Variable features(const Variable& x) { return exp(subtract(x, max(x, -1, true))); }

}  // namespace

// f / g = 1 + (2 r - 1)(1 - g), which is above g and never 0.
Variable refined_log_gate(const Variable& log_gate, const Variable& refine) {
  const Variable open = scale(exp(log_gate), -1, 1);
  return add(log_gate, log(scale(multiply(scale(refine, 2, -1), open), 1, 1)));
}

void ReglaConfig::fields(FieldVisitor& f) {
  f("scale", scale, "factor of the products of features; 0 = 1 / sqrt(key size)", {.min = 0});
  f("chunk", chunk, "tokens handled as one matrix product; changes speed, not results",
    {.unit = "tokens", .min = 1});
}

Regla::Regla(Config config, Dimensions dims, const ParameterScope& scope) : Mechanism(dims), config_(config) {
  if (config_.scale == 0) config_.scale = 1 / std::sqrt(static_cast<double>(dims.key));
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
  const Variable gate = refined_log_gate(cast(block.x[3], wide), cast(block.x[4], wide));
  const Scan scan = channel_decay_scan(config_.scale, config_.chunk, dims().heads, dims().key, dims().value,
                                       v.dtype(), v.device());
  const Variable o =
      cross(scan, {{features(block.x[0]), features(block.x[1]), v, gate}, block.position, block.document});
  return rms_norm(o, gain_, kNormEps);
}

Variable Regla::reference(const Block& block) const {
  const Variable g = exp(block.x[3]), r = block.x[4];
  const Variable f =
      add(multiply(scale(r, -1, 1), square(g)), multiply(r, scale(square(scale(g, -1, 1)), -1, 1)));
  const auto phi = [](const Variable& x) { return divide(exp(x), exp(max(x, -1, true))); };
  return naive_rms_norm(
      channel_decay_reference(phi(block.x[0]), phi(block.x[1]), block.x[2], log(f), config_.scale), gain_,
      kNormEps);
}

std::vector<Identity> Regla::identities() const {
  return {{"r = 1/2 is the plain gate", 1e-15,
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
          {"outputs keep their size however long the text is: the mean square of a head is 1", 1e-6,
           [d = dims()] {
             ParameterStore store(Dtype::f64);
             const Regla m({.scale = 1e3}, d, {store, ""});  // so that the eps of the norm does not show
             store.commit();
             const Layout layout = whole_documents({300});
             LocalCrossing cross(layout);
             const Variable y = m.forward(random_block(m, layout), cross);
             const Variable size = mean(square(y), -1);
             return largest_difference(size, full(size.shape(), 1, Dtype::f64));
           }}};
}

}  // namespace weft
