#include "layers/feed_forward.h"

#include "attention/initialize.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/swiglu.h"

namespace weft {

FeedForward::FeedForward(const std::string& kind, int64_t width, int64_t inner, int64_t depth,
                         const ParameterScope& scope)
    : kind_(kind) {
  if (kind_ != "gelu") {
    up_ = scope.declare({"gate_up.weight",
                         {2 * inner, width},
                         ParameterKind::matrix,
                         projection_init(width),
                         {inner, inner}});
  } else {
    up_ = scope.declare({"up.weight", {inner, width}, ParameterKind::matrix, projection_init(width)});
  }
  down_ = scope.declare({"down.weight", {width, inner}, ParameterKind::matrix, residual_init(inner, depth)});
}

Variable FeedForward::operator()(const Variable& x) const {
  const Variable h = linear(x, up_);
  if (kind_ == "gelu") return linear(gelu(h), down_);
  if (kind_ == "swiglu") return linear(swiglu(h), down_);
  const int64_t inner = h.dim(1) / 2;
  const std::vector<Variable> halves = split_columns(h, {inner, inner});
  return linear(multiply(halves[0], halves[1]), down_);
}

}  // namespace weft
