#include "autograd/ops/lrpe.h"

#include "autograd/ops/matmul.h"
#include "autograd/ops/rows.h"

namespace weft {

std::vector<Variable> lrpe_features(const std::vector<Variable>& x, const Variable& theta,
                                    const Tensor& position) {
  CHECK(!x.empty() && x[0].rank() == 3, "lrpe: ", x.size(), " tensors of features");
  const Variable& first = x[0];
  const int64_t n = first.dim(0), heads = first.dim(1), size = first.dim(2);
  const Dtype wide = wide_of(first.dtype());
  CHECK(theta.shape() == Shape({heads, size}) && theta.dtype() == wide && position.numel() == n &&
            position.dtype() == wide,
        "lrpe: x ", first.shape(), " ", name_of(first.dtype()), ", theta ", theta.shape(), " ",
        name_of(theta.dtype()), ", position ", position.shape(), " ", name_of(position.dtype()));
  const Tensor at = position.contiguous(), frequency = theta.value().contiguous();
  std::vector<Variable> inputs = x;
  inputs.push_back(theta);
  std::vector<Tensor> outputs;
  std::vector<cpu::LrpePart> parts;
  Saved saved = save(frequency, at);
  for (const Variable& part : x) {
    CHECK(part.shape() == first.shape() && part.dtype() == first.dtype(), "lrpe: x ", part.shape(),
          " beside ", first.shape());
    outputs.push_back(empty({n, heads, 2 * size}, part.dtype(), part.device()));
    parts.push_back({part, outputs.back()});
    saved.tensors.push_back(part);
  }
  ON_DEVICE(first.device(), lrpe_forward(parts, frequency, at));
  return record_many(
      "lrpe", inputs, outputs, std::move(saved), NoAttributes{}, [](Backward& grads, const NoAttributes&) {
        const Tensor &theta = grads.saved(0), &position = grads.saved(1);
        const int last = grads.inputs() - 1;
        std::vector<Tensor> x;
        std::vector<cpu::LrpePart> gradients;
        for (int i = 0; i < last; ++i) {
          x.push_back(grads.saved(2 + i));
          gradients.push_back({grads.room(i, x.back()), grads.grad(i)});
        }
        const Tensor dtheta =
            empty({row_blocks(position.numel()).count, theta.numel()}, theta.dtype(), theta.device());
        ON_DEVICE(theta.device(), lrpe_backward(gradients, x, dtheta, theta, position));
        for (int i = 0; i < last; ++i) grads.add(i, gradients[static_cast<size_t>(i)].x);
        if (!grads.wants(last)) return;
        const Into into = grads.into(last);
        const Tensor target = into.target.reshape({theta.numel()});
        ON_DEVICE(theta.device(), sum_rows(target, dtheta, into.beta));
      });
}

}  // namespace weft
