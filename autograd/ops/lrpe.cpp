#include "autograd/ops/lrpe.h"

#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/rows.h"

namespace weft {

namespace {

// sum over heads and channels of theta (dy_sin y_cos - dy_cos y_sin). By basic ops: only a state asks for it.
Tensor position_gradient(const Tensor& y, const Tensor& dy, const Tensor& theta) {
  const int64_t n = y.dim(0), size = theta.dim(1);
  const auto half = [&](const Tensor& of, int64_t which) {
    return slice(cast(of, theta.dtype()), 2, which * size, (which + 1) * size);
  };
  const Variable turned = subtract(multiply(half(dy, 1), half(y, 0)), multiply(half(dy, 0), half(y, 1)));
  return sum(reshape(multiply(turned, theta), {n, theta.numel()}), 1);
}

struct Inputs {
  int parts, theta, position;  // how many tensors of features; which inputs the others are
};

void backward(Backward& grads, const Inputs& at) {
  const Tensor &theta = grads.saved(0), &position = grads.saved(1);
  std::vector<Tensor> x;
  std::vector<cpu::LrpePart> gradients;
  for (int i = 0; i < at.parts; ++i) {
    x.push_back(grads.saved(2 + i));
    gradients.push_back({grads.room(i, x.back()), grads.grad(i)});
  }
  const Tensor dtheta =
      empty({row_blocks(position.numel()).count, theta.numel()}, theta.dtype(), theta.device());
  ON_DEVICE(theta.device(), lrpe_backward(gradients, x, dtheta, theta, position));
  for (int i = 0; i < at.parts; ++i) grads.add(i, gradients[static_cast<size_t>(i)].x);
  if (grads.wants(at.theta)) {
    const Into into = grads.into(at.theta);
    const Tensor target = into.target.reshape({theta.numel()});
    ON_DEVICE(theta.device(), sum_rows(target, dtheta, into.beta));
  }
  if (!grads.wants(at.position)) return;
  for (int i = 0; i < at.parts; ++i) {
    const Tensor &part = x[static_cast<size_t>(i)], dy = gradients[static_cast<size_t>(i)].y;
    const Tensor y = empty(dy.shape(), dy.dtype(), dy.device());
    ON_DEVICE(y.device(), lrpe_forward({{part, y}}, theta, position));
    grads.add(at.position, position_gradient(y, dy, theta).reshape(grads.shape(at.position)));
  }
}

}  // namespace

std::vector<Variable> lrpe_features(const std::vector<Variable>& x, const Variable& theta,
                                    const Variable& position, bool wide_features) {
  CHECK(!x.empty() && x[0].rank() == 3, "lrpe: ", x.size(), " tensors of features");
  const Variable& first = x[0];
  const int64_t n = first.dim(0), heads = first.dim(1), size = first.dim(2);
  const Dtype wide = wide_of(first.dtype());
  CHECK(theta.shape() == Shape({heads, size}) && theta.dtype() == wide && position.numel() == n &&
            position.dtype() == wide,
        "lrpe: x ", first.shape(), " ", name_of(first.dtype()), ", theta ", theta.shape(), " ",
        name_of(theta.dtype()), ", position ", position.shape(), " ", name_of(position.dtype()));
  const Tensor at = position.value().contiguous(), frequency = theta.value().contiguous();
  std::vector<Tensor> outputs;
  std::vector<cpu::LrpePart> parts;
  Saved saved = save(frequency, at);
  for (const Variable& part : x) {
    CHECK(part.shape() == first.shape() && part.dtype() == first.dtype(), "lrpe: x ", part.shape(),
          " beside ", first.shape());
    outputs.push_back(empty({n, heads, 2 * size}, wide_features ? wide : part.dtype(), part.device()));
    parts.push_back({part, outputs.back()});
    saved.tensors.push_back(part);
  }
  ON_DEVICE(first.device(), lrpe_forward(parts, frequency, at));
  std::vector<Variable> inputs = x;
  inputs.push_back(theta);
  inputs.push_back(position);
  const int count = static_cast<int>(x.size());
  return record_many("lrpe", inputs, outputs, std::move(saved), Inputs{count, count, count + 1}, backward);
}

}  // namespace weft
