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

namespace {

// The halves of a packed projection, or of its gradient.
struct Halves {
  Tensor gate, up;
  explicit Halves(const Tensor& packed)
      : gate(packed.columns(0, packed.dim(1) / 2)), up(packed.columns(packed.dim(1) / 2, packed.dim(1))) {}
};

void check_packed(const char* op, const Variable& packed) {
  CHECK(packed.rank() == 2 && packed.dim(1) % 2 == 0, op, ": packed ", packed.shape());
}

Tensor packed_like(const Tensor& dy) { return empty({dy.dim(0), 2 * dy.dim(1)}, dy.dtype(), dy.device()); }

}  // namespace

Variable swiglu(const Variable& packed) {
  check_packed("swiglu", packed);
  const Halves x(packed);
  const Tensor y = empty_like(x.gate);
  ON_DEVICE(y.device(), swiglu_forward(y, x.gate, x.up));
  return record("swiglu", {packed}, y, save(x.gate, x.up), NoAttributes{},
                [](Backward& grads, const NoAttributes&) {
                  const Tensor &dy = grads.grad(), dpacked = packed_like(dy);
                  const Halves d(dpacked);
                  ON_DEVICE(dy.device(), swiglu_backward(d.gate, d.up, grads.saved(0), grads.saved(1), dy));
                  grads.add(0, dpacked);
                });
}

Variable sglu(const Variable& packed) {
  check_packed("sglu", packed);
  const Halves x(packed);
  const Tensor y = empty_like(x.gate);
  ON_DEVICE(y.device(), sglu_forward(y, x.gate, x.up));
  return record("sglu", {packed}, y, save(x.gate, x.up), NoAttributes{},
                [](Backward& grads, const NoAttributes&) {
                  const Tensor &dy = grads.grad(), dpacked = packed_like(dy);
                  const Halves d(dpacked);
                  ON_DEVICE(dy.device(), sglu_backward(d.gate, d.up, grads.saved(0), grads.saved(1), dy));
                  grads.add(0, dpacked);
                });
}

}  // namespace weft
