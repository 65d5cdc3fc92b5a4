#include "attention/based.h"

#include <cmath>

#include "attention/feature_map.h"
#include "attention/in_chunk.h"
#include "attention/linear_attention.h"
#include "attention/naive.h"
#include "attention/softmax.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/triangle.h"

namespace weft {
namespace {

Variable constant_column(const Variable& like, double value) {
  return full({like.dim(0), like.dim(1), 1}, value, like.dtype(), like.device());
}

// (M, H, C, D) -> (M, H, C, features)
Variable based_features_by_head(const Variable& x) {
  const Variable y = taylor_features(reshape(x, {x.dim(0) * x.dim(1), x.dim(2), x.dim(3)}));
  return reshape(y, {x.dim(0), x.dim(1), x.dim(2), y.dim(2)});
}

Block based_features(const Block& b) {
  return {{taylor_features(b.x[0]), taylor_features(b.x[1]), b.x[2]}, b.position, b.document};
}

// Linear attention over the features of what it is given. Inside a chunk the product of two features is the
// polynomial of a score, for a fraction of the work, so where a whole chunk is composed features are only
// made for the state. A token of padding has v = 0, whatever its features are.
Scan over_based_features(const Scan& linear, double scale) {
  Scan scan = linear;
  scan.summarize = [=](const Block& b) {
    const Variable k = by_head(b.x[1]), v = by_head(b.x[2]);
    return State{full({k.dim(0), k.dim(1), 1, 1}, 1, k.dtype(), k.device()),
                 matmul(based_features_by_head(k), v, {true, false})};
  };
  scan.apply = [=](const Block& b, const State& prefix) {
    const Variable q = by_head(b.x[0]), k = by_head(b.x[1]), v = by_head(b.x[2]);
    const Variable s = weft::scale(matmul(q, k, {false, true}), scale);
    const Variable weights = lower_triangle(add(weft::scale(s, 1, 1), weft::scale(square(s), 0.5)));
    return by_token(add(matmul(weights, v), matmul(based_features_by_head(q), prefix[1])), b.x[2].dtype());
  };
  if (linear.step)
    scan.step = [=](const Block& b, const Tensor& states) { return linear.step(based_features(b), states); };
  scan.kernel.serves = [=](Device device) { return device == Device::cuda && linear.kernel.on(device); };
  scan.kernel.run = [=](const Block& b, const Layout& layout, const State& start, bool want_end) {
    return linear.kernel.run(based_features(b), layout, start, want_end);
  };
  return scan;
}

}  // namespace

void BasedConfig::fields(FieldVisitor& f) {
  f("chunk", chunk, "tokens processed as one matrix product",
    {.unit = "tokens", .min = 1, .speed_only = true});
  f("window", window, "add exact softmax attention over this many last tokens; 0 = none",
    {.unit = "tokens", .min = 0, .max = kLongestWindow});
}

Based::Based(Config config, Dimensions dims, const ParameterScope&) : Mechanism(dims), config_(config) {
  require_equal_heads(dims, "Based");
}

std::vector<Input> Based::inputs() const { return {{"q", "h k"}, {"k", "h k"}, {"v", "h v"}}; }

Variable Based::forward(const Block& block, Crossing& cross) const {
  const Variable q = block.x[0], k = block.x[1], v = block.x[2];
  const int64_t d = dims().key, e = dims().value, features = 1 + d + d * (d + 1) / 2;
  const Scan scan =
      linear_scan(1, config_.chunk, false, dims().heads, features, e + 1, v.dtype(), v.device());
  const Variable o =
      cross(over_based_features(scan, 1 / std::sqrt(static_cast<double>(d))),
            {{q, k, concatenate({v, constant_column(v, 1)}, 2)}, block.position, block.document});
  const Variable linear = divide(slice(o, 2, 0, e), slice(o, 2, e, e + 1));
  if (config_.window == 0) return linear;
  const AttentionOptions options{.scale = 1 / std::sqrt(static_cast<double>(d))};
  return add(linear, slice(cross(window_attention(options, config_.window, cross.layout()), block), 2, 0, e));
}

// The polynomial of the scores themselves, over the whole matrix.
Variable Based::reference(const Block& block) const {
  const double factor = 1 / std::sqrt(static_cast<double>(dims().key));
  const Variable q = permute(block.x[0], {1, 0, 2}), k = permute(block.x[1], {1, 0, 2}),
                 v = permute(block.x[2], {1, 0, 2});
  const Variable s = scale(matmul(q, k, {false, true}), factor);
  const Variable weights = lower_triangle(add(scale(s, 1, 1), scale(square(s), 0.5)));
  const Variable linear = permute(divide(matmul(weights, v), sum(weights, 2, true)), {1, 0, 2});
  if (config_.window == 0) return linear;
  const Tensor bias = naive_bias(dims().heads, q.dim(1), q.dtype(), [&](int64_t, int64_t i, int64_t j) {
    return j <= i && i - j < config_.window ? 0.0 : -INFINITY;
  });
  return add(linear, naive_attention(block.x[0], block.x[1], block.x[2], bias, factor));
}

std::vector<Identity> Based::identities() const {
  return {{"phi(q) . phi(k) = 1 + s + s^2/2", 1e-12,
           [d = dims()] {
             const Tensor q = random_tensor({6, 2, d.key}, 1), k = random_tensor({6, 2, d.key}, 2);
             const std::vector<double> features =
                 to_values(sum(multiply(taylor_features(q), taylor_features(k)), 2));
             const std::vector<double> dot = to_values(sum(multiply(q, k), 2));
             double worst = 0;
             for (size_t i = 0; i < dot.size(); ++i) {
               const double s = dot[i] / std::sqrt(static_cast<double>(d.key));
               worst = std::max(worst, std::abs(features[i] - (1 + s + s * s / 2)));
             }
             return worst;
           }},
          {"no weight is below 1/2, so the sum over t tokens is at least t/2", 1e-12, [d = dims()] {
             const Variable q = scale(random_tensor({400, 1, d.key}, 1), 2),
                            k = random_tensor({400, 1, d.key}, 2);
             double worst = 0, least = INFINITY;
             for (const double w : to_values(sum(multiply(taylor_features(q), taylor_features(k)), 2))) {
               worst = std::max(worst, 0.5 - w);
               least = std::min(least, w);
             }
             return least < 0.6 ? worst : INFINITY;  // some come near it
           }}};
}

}  // namespace weft
