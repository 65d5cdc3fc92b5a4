#include "autograd/ops/reduce.h"

namespace weft {
namespace {

struct Folded {
  Tensor x;              // (outer, n, inner)
  Shape inner, reduced;  // of the result as a kernel sees it, and as the caller does
};

Folded fold(const char* op, const Variable& x, int axis, bool keep) {
  CHECK(is_float(x.dtype()), op, ": x is ", name_of(x.dtype()));
  const Shape& s = x.shape();
  const int a = s.index(axis);
  const int64_t outer = s.product(0, a), inner = s.product(a + 1, s.rank());
  Shape reduced;
  for (int i = 0; i < s.rank(); ++i)
    if (i != a)
      reduced.push_back(s[i]);
    else if (keep)
      reduced.push_back(1);
  return {x.value().contiguous().reshape({outer, s[a], inner}), {outer, inner}, reduced};
}

Variable weighted_sum(const char* op, const Variable& x, int axis, bool keep, double factor) {
  const Folded f = fold(op, x, axis, keep);
  const Tensor y = empty(f.inner, x.dtype(), x.device());
  ON_DEVICE(y.device(), reduce_sum(y, f.x, factor));
  struct Factor {
    double factor;
  };
  // Only shapes are needed on the way back: tensors of the meta device hold no memory.
  const Tensor whole = empty(x.shape(), x.dtype(), Device::meta),
               folded = empty(f.x.shape(), x.dtype(), Device::meta);
  return record(op, {x}, y.reshape(f.reduced), save(whole, folded), Factor{factor},
                [](Backward& grads, const Factor& a) {
                  const Shape& folded = grads.saved(1).shape();
                  const Tensor dy = grads.grad().contiguous().reshape({folded[0], folded[2]});
                  const Tensor dx = empty(folded, dy.dtype(), dy.device());
                  ON_DEVICE(dy.device(), reduce_sum_backward(dx, dy, a.factor));
                  grads.add(0, dx.reshape(grads.saved(0).shape()));
                });
}

}  // namespace

Variable sum(const Variable& x, int axis, bool keep) { return weighted_sum("sum", x, axis, keep, 1); }

Variable mean(const Variable& x, int axis, bool keep) {
  CHECK(x.dim(axis) > 0, "mean: x ", x.shape(), " over axis ", axis);
  return weighted_sum("mean", x, axis, keep, 1.0 / static_cast<double>(x.dim(axis)));
}

Variable max(const Variable& x, int axis, bool keep) {
  CHECK(x.dim(axis) > 0, "max: x ", x.shape(), " over axis ", axis);
  const Folded f = fold("max", x, axis, keep);
  const Tensor y = empty(f.inner, x.dtype(), x.device()), index = empty(f.inner, Dtype::i32, x.device());
  ON_DEVICE(y.device(), reduce_max(y, index, f.x));
  const Tensor whole = empty(x.shape(), x.dtype(), Device::meta),
               folded = empty(f.x.shape(), x.dtype(), Device::meta);
  return record("max", {x}, y.reshape(f.reduced), save(whole, folded, index), NoAttributes{},
                [](Backward& grads, const NoAttributes&) {
                  const Tensor& index = grads.saved(2);
                  const Tensor dy = grads.grad().contiguous().reshape(index.shape());
                  const Tensor dx = empty(grads.saved(1).shape(), dy.dtype(), dy.device());
                  ON_DEVICE(dy.device(), reduce_max_backward(dx, index, dy));
                  grads.add(0, dx.reshape(grads.saved(0).shape()));
                });
}

}  // namespace weft
