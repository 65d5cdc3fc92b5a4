#include "attention/ema_coefficients.h"

#include <cmath>

namespace weft {

namespace {

struct EmaScale {
  double value;
};

void coefficients_backward(Backward& b, const EmaScale& scale) {
  Into to[4]{};
  for (int i = 0; i < 4; ++i) {
    if (!b.wants(i)) continue;
    to[i] = b.into(i);
    CHECK(to[i].target.dense() && to[i].target.dtype() == b.saved(i).dtype(), "ema_coefficients: gradient ",
          to[i].target.shape(), " ", name_of(to[i].target.dtype()));
  }
  const Tensor of[] = {b.saved(0), b.saved(1), b.saved(2), b.saved(3)};
  const Tensor d[] = {b.grad(0).contiguous(), b.grad(1).contiguous(), b.grad(2).contiguous()};
  ON_DEVICE(d[0].device(), ema_coefficients_backward(to, of, d, scale.value));
}

}  // namespace

EmaCoefficients ema_coefficients(const Variable& alpha, const Variable& delta, const Variable& beta,
                                 const Variable& gamma) {
  const std::vector<Variable> inputs{alpha, delta, beta, gamma};
  CHECK(alpha.rank() == 2 && wide_of(alpha.dtype()) == alpha.dtype(), "ema_coefficients: alpha ",
        alpha.shape(), " ", name_of(alpha.dtype()));
  for (const Variable& x : inputs)
    CHECK(x.shape() == alpha.shape() && x.dtype() == alpha.dtype(), "ema_coefficients: alpha ", alpha.shape(),
          ", another ", x.shape());
  const Tensor of[] = {alpha.value().contiguous(), delta.value().contiguous(), beta.value().contiguous(),
                       gamma.value().contiguous()};
  const Tensor to[] = {empty_like(of[0]), empty_like(of[0]), empty_like(of[0])};
  const double scale = 1 / std::sqrt(static_cast<double>(alpha.dim(1)));
  ON_DEVICE(alpha.device(), ema_coefficients_forward(to, of, scale));
  const auto y = record_many("ema_coefficients", inputs, {to[0], to[1], to[2]},
                             save(of[0], of[1], of[2], of[3]), EmaScale{scale}, coefficients_backward);
  return {y[0], y[1], y[2]};
}

}  // namespace weft
