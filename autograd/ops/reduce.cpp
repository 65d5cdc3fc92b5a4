#include "autograd/ops/reduce.h"

namespace weft {
namespace {

// What a reduction's way back knows besides the shape of its input.
struct Axis {
  int axis;
  // (outer, n, inner) as kernels see an input of this shape
  Shape folded(const Shape& s) const { return {s.product(0, axis), s[axis], s.product(axis + 1, s.rank())}; }
};

struct Folded {
  Tensor x;
  Axis axis;
  Shape inner, reduced;  // of the result as a kernel sees it, (outer, inner), and as the caller does
};

Folded fold(const char* op, const Variable& x, int axis, bool keep) {
  CHECK(is_float(x.dtype()), op, ": x is ", name_of(x.dtype()));
  const Shape& s = x.shape();
  const Axis a{s.index(axis)};
  const Shape folded = a.folded(s);
  Shape reduced;
  for (int i = 0; i < s.rank(); ++i)
    if (i != a.axis)
      reduced.push_back(s[i]);
    else if (keep)
      reduced.push_back(1);
  return {x.value().contiguous().reshape(folded), a, {folded[0], folded[2]}, reduced};
}

Variable weighted_sum(const char* op, const Variable& x, int axis, bool keep, double factor) {
  const Folded f = fold(op, x, axis, keep);
  const Tensor y = empty(f.inner, x.dtype(), x.device());
  ON_DEVICE(y.device(), reduce_sum(y, f.x, factor));
  struct Weighted : Axis {
    double factor;
  };
  return record(op, {x}, y.reshape(f.reduced), save(), Weighted{f.axis, factor},
                [](Backward& grads, const Weighted& a) {
                  const Shape folded = a.folded(grads.shape(0));
                  const Tensor dy = grads.grad().contiguous().reshape({folded[0], folded[2]});
                  const Tensor dx = empty(folded, dy.dtype(), dy.device());
                  ON_DEVICE(dy.device(), reduce_sum_backward(dx, dy, a.factor));
                  grads.add(0, dx.reshape(grads.shape(0)));
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
  CHECK(x.dim(axis) <= INT32_MAX, "max: x ", x.shape(), " over axis ", axis,
        ", which has more places than 32 bits number");
  const Folded f = fold("max", x, axis, keep);
  const Tensor y = empty(f.inner, x.dtype(), x.device()), index = empty(f.inner, Dtype::i32, x.device());
  ON_DEVICE(y.device(), reduce_max(y, index, f.x));
  return record("max", {x}, y.reshape(f.reduced), save(index), f.axis, [](Backward& grads, const Axis& a) {
    const Tensor& index = grads.saved(0);
    const Tensor dy = grads.grad().contiguous().reshape(index.shape());
    const Tensor dx = empty(a.folded(grads.shape(0)), dy.dtype(), dy.device());
    ON_DEVICE(dy.device(), reduce_max_backward(dx, index, dy));
    grads.add(0, dx.reshape(grads.shape(0)));
  });
}

}  // namespace weft
