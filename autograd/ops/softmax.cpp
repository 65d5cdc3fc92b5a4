#include "autograd/ops/softmax.h"

#include "autograd/ops/rows.h"

namespace weft {

Variable softmax(const Variable& x) {
  CHECK(x.rank() >= 1, "softmax: x ", x.shape());
  const Tensor rows = x.value().contiguous(), y = empty_like(rows);
  ON_DEVICE(y.device(), softmax_forward(y, rows));
  return record("softmax", {x}, y, save(y), NoAttributes{}, [](Backward& grads, const NoAttributes&) {
    const Tensor dy = grads.grad().contiguous(), dx = empty_like(dy);
    ON_DEVICE(dy.device(), softmax_backward(dx, grads.saved(0), dy));
    grads.add(0, dx);
  });
}

Variable log_sum_exp(const Variable& x) {
  CHECK(x.rank() >= 1, "log_sum_exp: x ", x.shape());
  const Tensor rows = x.value().contiguous();
  const Shape shape(x.shape().begin(), x.shape().end() - 1);
  // Kept wide for the way back: e^(x - y) from a y rounded to bf16 would not sum to 1.
  const Tensor wide = empty(shape, wide_of(x.dtype()), x.device());
  ON_DEVICE(rows.device(), log_sum_exp_forward(wide, rows));
  return record("log_sum_exp", {x}, wide.to(x.dtype()), save(rows, wide), NoAttributes{},
                [](Backward& grads, const NoAttributes&) {
                  const Tensor &x = grads.saved(0), &y = grads.saved(1), dx = empty_like(x);
                  ON_DEVICE(x.device(), log_sum_exp_backward(dx, x, y, grads.grad().contiguous()));
                  grads.add(0, dx);
                });
}

}  // namespace weft
