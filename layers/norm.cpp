#include "layers/norm.h"

#include "autograd/ops/elementwise.h"
#include "autograd/ops/layer_norm.h"
#include "autograd/ops/rms_norm.h"

namespace weft {

Norm::Norm(const std::string& kind, int64_t width, double eps, const ParameterScope& scope) : eps_(eps) {
  if (kind == "srms") return;
  gain_ = scope.declare({"weight", {width}, ParameterKind::vector, Initializer::constant(1)});
  if (kind == "layer")
    bias_ = scope.declare({"bias", {width}, ParameterKind::vector, Initializer::constant(0)});
}

Variable Norm::operator()(const Variable& x) const {
  if (!gain_.defined()) return rms_norm(x, {}, eps_);
  return bias_.defined() ? layer_norm(x, gain_, bias_, eps_) : rms_norm(x, gain_, eps_);
}

Around Norm::around() const {
  return {.norm = true, .gain = gain_.defined() ? gain_->working : Tensor(), .eps = eps_};
}

SumAndNorm Norm::operator()(const Variable& x, const Variable& branch) const {
  if (!branch.defined()) return {x, (*this)(x)};
  if (!bias_.defined()) return add_rms_norm(x, branch, gain_.defined() ? Variable(gain_) : Variable(), eps_);
  const Variable sum = add(x, branch);
  return {sum, (*this)(sum)};
}

}  // namespace weft
