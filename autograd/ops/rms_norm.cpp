#include "autograd/ops/rms_norm.h"

#include "autograd/ops/add_rms_norm.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/rows.h"

namespace weft {

Variable rms_norm(const Variable& x, const Variable& gain, double eps) {
  CHECK(x.rank() >= 1 && is_float(x.dtype()), "rms_norm: x ", x.shape(), " ", name_of(x.dtype()));
  CHECK(!gain.defined() || gain.shape() == Shape{x.dim(-1)}, "rms_norm: x ", x.shape(), ", gain ",
        gain.shape());
  const Dtype wide = wide_of(x.dtype());
  const Tensor rows = as_rows(x.value()),
               factors = gain.defined() ? gain.value().to(wide).contiguous() : Tensor();
  const Tensor y = empty_like(x), rstd = empty({row_count(x)}, wide, x.device());
  ON_DEVICE(x.device(), rms_norm_forward(y, rstd, rows, factors, eps));
  std::vector<Variable> inputs{x};
  if (gain.defined()) inputs.push_back(gain);
  return record(
      "rms_norm", inputs, y, save(rows, rstd, factors), NoAttributes{},
      [](Backward& grads, const NoAttributes&) {
        const Tensor dy = grads.grad().contiguous(), dx = empty_like(dy);
        const Tensor& rstd = grads.saved(1);
        const Tensor dgain = empty({norm_blocks(rstd.dim(0)).count, dy.dim(-1)}, rstd.dtype(), dy.device());
        // The gradient of a residual stream comes by the sum behind it first, and is added on the way.
        const Tensor dsum = grads.collect(0);
        ON_DEVICE(dy.device(), add_rms_norm_backward(dx, dgain, grads.saved(0), rstd, grads.saved(2),
                                                     dsum.defined() ? dsum.contiguous() : dsum, dy));
        grads.add(0, dx);
        if (grads.inputs() == 2 && grads.wants(1)) {
          const Into into = grads.into(1);
          ON_DEVICE(dy.device(), sum_rows(into.target, dgain, into.beta));
        }
      });
}

}  // namespace weft
