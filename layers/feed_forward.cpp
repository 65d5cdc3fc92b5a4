#include "layers/feed_forward.h"

#include "attention/initialize.h"
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

Variable FeedForward::activated(const Variable& h) const {
  if (kind_ == "gelu") return gelu(h);
  return kind_ == "swiglu" ? swiglu(h) : sglu(h);
}

Variable FeedForward::operator()(const Variable& x) const { return linear(activated(linear(x, up_)), down_); }

Tensor FeedForward::step(const Tensor& x, const Norm& norm) const {
  Around around = norm.around();
  around.swiglu = kind_ == "swiglu";
  const Variable h = few_rows_linear(x, up_->working, around);
  return few_rows_linear(around.swiglu ? h : activated(h), down_->working, {.residual = x});
}

}  // namespace weft
