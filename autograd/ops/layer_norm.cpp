#include "autograd/ops/layer_norm.h"

#include "autograd/ops/matmul.h"
#include "autograd/ops/rows.h"

namespace weft {

Variable layer_norm(const Variable& x, const Variable& gain, const Variable& bias, double eps) {
  CHECK(x.rank() >= 1 && is_float(x.dtype()), "layer_norm: x ", x.shape(), " ", name_of(x.dtype()));
  const Dtype wide = wide_of(x.dtype());
  struct Places {
    int gain, bias;  // among the inputs; 0: absent
  } places{0, 0};
  std::vector<Variable> inputs{x};
  const auto vector = [&](const Variable& v, const char* name, int& place) {
    if (!v.defined()) return Tensor();
    CHECK(v.shape() == Shape{x.dim(-1)}, "layer_norm: x ", x.shape(), ", ", name, " ", v.shape());
    place = static_cast<int>(inputs.size());
    inputs.push_back(v);
    return v.value().to(wide).contiguous();
  };
  const Tensor factors = vector(gain, "gain", places.gain), shifts = vector(bias, "bias", places.bias);
  const Tensor rows = as_rows(x.value());
  const Tensor y = empty_like(x), statistics = empty({row_count(x), 2}, wide, x.device());
  ON_DEVICE(x.device(), layer_norm_forward(y, statistics, rows, factors, shifts, eps));
  return record("layer_norm", inputs, y, save(rows, statistics, factors), places,
                [](Backward& grads, const Places& places) {
                  const Tensor dy = grads.grad().contiguous(), dx = empty_like(dy);
                  const Tensor& statistics = grads.saved(1);
                  const Tensor dgain = empty({layer_norm_blocks(statistics.dim(0)).count, dy.dim(-1)},
                                             statistics.dtype(), dy.device());
                  const Tensor dbias = empty_like(dgain);
                  ON_DEVICE(dy.device(), layer_norm_backward(dx, dgain, dbias, grads.saved(0), statistics,
                                                             grads.saved(2), dy));
                  grads.add(0, dx);
                  const auto land = [&](int place, const Tensor& partial) {
                    if (place == 0 || !grads.wants(place)) return;
                    const Into into = grads.into(place);
                    ON_DEVICE(partial.device(), sum_rows(into.target, partial, into.beta));
                  };
                  land(places.gain, dgain);
                  land(places.bias, dbias);
                });
}

}  // namespace weft
