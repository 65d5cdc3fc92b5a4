#include "layers/feed_forward.h"

#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/swiglu.h"
#include "layers/initialize.h"

namespace weft {

FeedForward::FeedForward(const std::string& kind, int64_t width, int64_t inner, int64_t depth,
                         const ParameterScope& scope)
    : gated_(kind == "swiglu") {
  if (gated_) {
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
  return linear(gated_ ? swiglu(h) : gelu(h), down_);
}

}  // namespace weft
