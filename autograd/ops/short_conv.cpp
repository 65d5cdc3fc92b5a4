#include "autograd/ops/short_conv.h"

#include "autograd/ops/matmul.h"
#include "autograd/ops/rows.h"

namespace weft {

Variable short_conv(const Variable& x, const Variable& weight, const Variable& bias, const Tensor& position,
                    const Variable& before) {
  CHECK(x.rank() == 2 && weight.rank() == 2 && weight.dim(0) == x.dim(1) && weight.dim(1) >= 1 &&
            weight.dim(1) <= 8,
        "short_conv: x ", x.shape(), ", weight ", weight.shape());
  CHECK(position.rank() == 1 && position.dim(0) == x.dim(0) && position.dtype() == Dtype::i32,
        "short_conv: x ", x.shape(), ", position ", position.shape(), " ", name_of(position.dtype()));
  const Dtype wide = wide_of(x.dtype());
  struct Places {
    int bias, before;  // among the inputs; 0: absent
  } places{0, 0};
  std::vector<Variable> inputs{x, weight};
  const Tensor filter = weight.value().contiguous().to(wide);
  Tensor shift, front;
  if (bias.defined()) {
    CHECK(bias.rank() == 1 && bias.dim(0) == x.dim(1), "short_conv: x ", x.shape(), ", bias ", bias.shape());
    places.bias = static_cast<int>(inputs.size());
    inputs.push_back(bias);
    shift = bias.value().contiguous().to(wide);
  }
  if (before.defined()) {
    CHECK(before.rank() == 2 && before.dim(0) == weight.dim(1) - 1 && before.dim(1) == x.dim(1) &&
              before.dtype() == x.dtype(),
          "short_conv: x ", x.shape(), ", weight ", weight.shape(), ", before ", before.shape(), " ",
          name_of(before.dtype()));
    places.before = static_cast<int>(inputs.size());
    inputs.push_back(before);
    front = before.value().contiguous();
  }
  const Tensor y = empty_like(x);
  ON_DEVICE(y.device(), short_conv_forward(y, x, filter, shift, position, front));
  return record(
      "short_conv", inputs, y, save(x, filter, position, front), places,
      [](Backward& grads, const Places& places) {
        const Tensor &x = grads.saved(0), &weight = grads.saved(1), &before = grads.saved(3);
        const Tensor dy = grads.grad().contiguous(), dx = empty_like(dy);
        const Tensor dbefore = before.defined() ? empty_like(before) : Tensor();
        const int64_t blocks = row_blocks(x.dim(0)).count, channels = x.dim(1);
        const Tensor dweight = empty({blocks, channels * weight.dim(1)}, weight.dtype(), x.device());
        const Tensor dbias = empty({blocks, channels}, weight.dtype(), x.device());
        ON_DEVICE(x.device(),
                  short_conv_backward(dx, dbefore, dweight, dbias, x, weight, grads.saved(2), before, dy));
        grads.add(0, dx);
        const auto land = [&](int place, const Tensor& partial) {
          if (!grads.wants(place)) return;
          const Into into = grads.into(place);
          ON_DEVICE(partial.device(), sum_rows(into.target.reshape({partial.dim(1)}), partial, into.beta));
        };
        land(1, dweight);
        if (places.bias > 0) land(places.bias, dbias);
        if (places.before > 0) grads.add(places.before, dbefore);
      });
}

}  // namespace weft
