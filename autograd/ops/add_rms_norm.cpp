#include "autograd/ops/add_rms_norm.h"

#include "autograd/ops/matmul.h"
#include "autograd/ops/rows.h"

namespace weft {

SumAndNorm add_rms_norm(const Variable& first, const Variable& second, const Variable& gain, double eps) {
  const Tensor x = first.value().contiguous(), branch = second.value().contiguous();
  CHECK(x.rank() >= 1 && is_float(x.dtype()) && x.shape() == branch.shape() && x.dtype() == branch.dtype(),
        "add_rms_norm: x ", x.shape(), " ", name_of(x.dtype()), ", branch ", branch.shape(), " ",
        name_of(branch.dtype()));
  CHECK(!gain.defined() || gain.shape() == Shape{x.dim(-1)}, "add_rms_norm: x ", x.shape(), ", gain ",
        gain.shape());
  const Dtype wide = wide_of(x.dtype());
  const Tensor factors = gain.defined() ? gain.value().to(wide).contiguous() : Tensor();
  const Tensor sum = empty_like(x), y = empty_like(x), rstd = empty({row_count(x)}, wide, x.device());
  ON_DEVICE(x.device(), add_rms_norm_forward(sum, y, rstd, x, branch, factors, eps));
  std::vector<Variable> inputs{first, second};
  if (gain.defined()) inputs.push_back(gain);
  const std::vector<Variable> out = record_many(
      "add_rms_norm", inputs, {sum, y}, save(sum, rstd, factors), NoAttributes{},
      [](Backward& grads, const NoAttributes&) {
        const Tensor dsum = grads.has_grad(0) ? grads.grad(0).contiguous() : Tensor();
        const Tensor dy = grads.grad(1).contiguous(), dx = empty_like(dy);
        const Tensor &sum = grads.saved(0), &rstd = grads.saved(1);
        const Tensor dgain = empty({norm_blocks(rstd.dim(0)).count, dy.dim(-1)}, rstd.dtype(), dy.device());
        ON_DEVICE(dy.device(), add_rms_norm_backward(dx, dgain, sum, rstd, grads.saved(2), dsum, dy));
        grads.add(0, dx);
        grads.add(1, dx);
        if (grads.inputs() == 3 && grads.wants(2)) {
          const Into into = grads.into(2);
          ON_DEVICE(dy.device(), sum_rows(into.target, dgain, into.beta));
        }
      });
  return {out[0], out[1]};
}

}  // namespace weft
