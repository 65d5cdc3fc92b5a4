#include "autograd/ops/gated_rms_norm.h"

#include "autograd/ops/rows.h"

namespace weft {

Variable gated_rms_norm(const Variable& x, const Variable& gate, double eps) {
  CHECK(x.rank() >= 1 && is_float(x.dtype()) && x.shape() == gate.shape() && x.dtype() == gate.dtype(),
        "gated_rms_norm: x ", x.shape(), " ", name_of(x.dtype()), ", gate ", gate.shape(), " ",
        name_of(gate.dtype()));
  const Tensor rows = as_rows(x.value()), gates = as_rows(gate.value());
  const Tensor y = empty_like(x), rstd = empty({row_count(x)}, wide_of(x.dtype()), x.device());
  ON_DEVICE(x.device(), gated_rms_norm_forward(y, rstd, rows, gates, eps));
  return record("gated_rms_norm", {x, gate}, y, save(rows, gates, rstd), NoAttributes{},
                [](Backward& grads, const NoAttributes&) {
                  const Tensor &x = grads.saved(0), &gate = grads.saved(1), dy = as_rows(grads.grad());
                  const Tensor dx = room_for_rows(grads, 0, x), dgate = room_for_rows(grads, 1, gate);
                  ON_DEVICE(x.device(), gated_rms_norm_backward(dx, dgate, x, gate, grads.saved(2), dy));
                  grads.add(0, dx);
                  grads.add(1, dgate);
                });
}

}  // namespace weft
