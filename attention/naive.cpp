#include "attention/naive.h"

#include <cmath>

#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/softmax.h"

namespace weft {
namespace {

// (n, G, D) -> (H, n, D), each key-value head for the H / G query heads that share it.
Variable shared_by_head(const Variable& x, int64_t heads) {
  const Variable grouped = permute(x, {1, 0, 2});
  std::vector<int32_t> owner;
  for (int64_t h = 0; h < heads; ++h) owner.push_back(static_cast<int32_t>(h * x.dim(1) / heads));
  return gather_rows(grouped, from_ints(owner, x.device()));
}

}  // namespace

Variable naive_attention(const Variable& q, const Variable& k, const Variable& v, const Tensor& bias,
                         double factor, const Variable& sink) {
  const int64_t heads = q.dim(1), n = q.dim(0);
  const Variable scores = matmul(shared_by_head(q, heads), shared_by_head(k, heads), {false, true});
  Variable biased = add(scale(scores, factor), bias);
  if (sink.defined()) {
    const Variable column = add(zeros({heads, n, 1}, q.dtype(), q.device()), reshape(sink, {heads, 1, 1}));
    biased = concatenate({biased, column}, 2);
  }
  Variable weights = softmax(biased);
  if (sink.defined()) weights = slice(weights, 2, 0, n);
  return permute(matmul(weights, shared_by_head(v, heads)), {1, 0, 2});
}

Tensor naive_bias(int64_t heads, int64_t n, Dtype dtype,
                  const std::function<double(int64_t, int64_t, int64_t)>& bias) {
  std::vector<double> values;
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) values.push_back(bias(h, i, j));
  return from_values({heads, n, n}, dtype, values);
}

Variable naive_rotary(const Variable& x, int64_t first, double theta) {
  const int64_t n = x.dim(0), half = x.dim(2) / 2;
  std::vector<double> cosines, sines;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < half; ++j) {
      const double angle = static_cast<double>(first + i) *
                           std::pow(theta, -static_cast<double>(j) / static_cast<double>(half));
      cosines.push_back(std::cos(angle));
      sines.push_back(std::sin(angle));
    }
  const Variable c = from_values({n, 1, half}, x.dtype(), cosines),
                 s = from_values({n, 1, half}, x.dtype(), sines);
  const Variable a = slice(x, 2, 0, half), b = slice(x, 2, half, 2 * half);
  return concatenate({subtract(multiply(a, c), multiply(b, s)), add(multiply(b, c), multiply(a, s))}, 2);
}

Variable naive_rms_norm(const Variable& x, const Variable& gain, double eps) {
  const Variable square_mean = mean(square(x), x.rank() - 1, true);
  return multiply(divide(x, sqrt(scale(square_mean, 1, eps))), gain);
}

}  // namespace weft
