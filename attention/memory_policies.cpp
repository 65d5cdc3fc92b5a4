#include <algorithm>

#include "attention/memory.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/layer_norm.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/softmax.h"

namespace weft {
namespace {

// Bounds the inner gradient, which has its inverse square root.
constexpr double kExpansionNormEps = 1e-3;

// x with its last dimension cut or filled with zeros.
Variable resized(const Variable& x, int64_t size) {
  const int64_t h = x.dim(0), n = x.dim(1), d = x.dim(2);
  if (d == size) return x;
  if (d > size) return slice(x, 2, 0, size);
  return concatenate({x, zeros({h, n, size - d}, x.dtype(), x.device())}, 2);
}

// z normalised over its last dimension, and one over the deviation.
struct Normalized {
  Variable value, factor;
};
Normalized normalized(const Variable& z) {
  const Variable centred = subtract(z, mean(z, 2, true));
  const Variable factor = reciprocal(sqrt(scale(mean(square(centred), 2, true), 1, kExpansionNormEps)));
  return {multiply(centred, factor), factor};
}

// (x^2 + epsilon)^exponent; those of the defaults without a logarithm.
Variable smooth_power(const Variable& x, double exponent, double epsilon) {
  const Variable base = scale(square(x), 1, epsilon);
  if (exponent == 2) return square(base);
  if (exponent == 0.5) return sqrt(base);
  return exp(scale(log(base), exponent));
}

}  // namespace

Memory matrix_memory(int64_t heads, int64_t key, int64_t value) {
  Memory memory;
  memory.names = {"M"};
  memory.shapes = {{heads, key, value}};
  memory.answer = [](const Weigh& weigh, const Variable& x) { return weigh(0, x); };
  memory.gradient = [](const WeighAlike& weigh, const Variable& k, const Variable& v, const Slope& slope) {
    return std::vector<OuterProducts>{{k, slope(subtract(weigh(0, k, false), v))}};
  };
  return memory;
}

Memory mlp_memory(int64_t heads, int64_t key, int64_t inner, int64_t value) {
  Memory memory;
  memory.names = {"W1", "W2"};
  memory.shapes = {{heads, key, inner}, {heads, inner, value}};
  memory.answer = [value](const Weigh& weigh, const Variable& x) {
    return add(resized(x, value), layer_norm(weigh(1, gelu(weigh(0, x))), {}, {}, kExpansionNormEps));
  };
  memory.gradient = [value](const WeighAlike& weigh, const Variable& k, const Variable& v,
                            const Slope& slope) {
    const Variable before = weigh(0, k, false), inside = gelu(before);
    const Normalized n = normalized(weigh(1, inside, false));
    const Variable error = slope(subtract(add(resized(k, value), n.value), v));
    // Back through the norm: what is parallel to 1 and to the normalised row drops out.
    const Variable along = multiply(n.value, mean(multiply(error, n.value), 2, true));
    const Variable d_after = multiply(subtract(subtract(error, mean(error, 2, true)), along), n.factor);
    const Variable d_before = multiply(weigh(1, d_after, true), gelu_derivative(before));
    return std::vector<OuterProducts>{{k, d_before}, {inside, d_after}};
  };
  return memory;
}

Bias squared_bias() {
  return {[](const Variable& error, const Variable&) { return scale(error, 2); }, true};
}

Bias power_bias(double p, double epsilon) {
  // |e|^(p-1) sign(e) = e |e|^(p-2): exact at p = 2, smooth at 0 for every p.
  return {[=](const Variable& error, const Variable&) {
    return scale(multiply(error, smooth_power(error, (p - 2) / 2, epsilon)), p);
  }};
}

Bias huber_bias() {
  return {[](const Variable& error, const Variable& bound) {
    const Variable longest = sqrt(maximum(square(bound), sum(square(error), 2, true)));
    return scale(multiply(error, divide(bound, longest)), 2);
  }};
}

Retention norm_retention(double q, double epsilon) {
  Retention retention;
  retention.scale = [=](const Variable& a) {
    const int64_t h = a.dim(0);
    const Variable total = sum(reshape(smooth_power(a, q / 2, epsilon), {h, 1, a.numel() / h}), 2, true);
    return exp(scale(log(total), (2 - q) / q));  // |A|_q^(2-q)
  };
  return retention;
}

Retention softmax_retention() {
  Retention retention;
  retention.map = [](const Variable& a) { return softmax(a); };
  retention.deviation = 2;  // A are logarithms: weights that differ by factors
  return retention;
}

}  // namespace weft
