#include "autograd/ops/swiglu.h"

namespace weft {

Variable swiglu(const Variable& gate, const Variable& up) {
  CHECK(gate.rank() == 2 && gate.shape() == up.shape() && gate.dtype() == up.dtype(), "swiglu: gate ",
        gate.shape(), " ", name_of(gate.dtype()), ", up ", up.shape(), " ", name_of(up.dtype()));
  const Tensor y = empty_like(gate);
  ON_DEVICE(y.device(), swiglu_forward(y, gate, up));
  return record("swiglu", {gate, up}, y, save(gate, up), NoAttributes{},
                [](Backward& grads, const NoAttributes&) {
                  const Tensor &dy = grads.grad(), dgate = empty_like(dy), dup = empty_like(dy);
                  ON_DEVICE(dy.device(), swiglu_backward(dgate, dup, grads.saved(0), grads.saved(1), dy));
                  grads.add(0, dgate);
                  grads.add(1, dup);
                });
}

Variable swiglu(const Variable& packed) {
  CHECK(packed.rank() == 2 && packed.dim(1) % 2 == 0, "swiglu: packed ", packed.shape());
  const int64_t f = packed.dim(1) / 2;
  const Tensor &both = packed, gate = both.columns(0, f), up = both.columns(f, 2 * f), y = empty_like(gate);
  ON_DEVICE(y.device(), swiglu_forward(y, gate, up));
  return record("swiglu", {packed}, y, save(gate, up), NoAttributes{},
                [](Backward& grads, const NoAttributes&) {
                  const Tensor& dy = grads.grad();
                  const int64_t f = dy.dim(1);
                  const Tensor dpacked = empty({dy.dim(0), 2 * f}, dy.dtype(), dy.device());
                  const Tensor dgate = dpacked.columns(0, f), dup = dpacked.columns(f, 2 * f);
                  ON_DEVICE(dy.device(), swiglu_backward(dgate, dup, grads.saved(0), grads.saved(1), dy));
                  grads.add(0, dpacked);
                });
}

}  // namespace weft
