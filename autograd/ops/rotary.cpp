#include "autograd/ops/rotary.h"

namespace weft {

Variable rotary(const Variable& x, const Tensor& position, double theta, int64_t rotated) {
  struct Turn {
    double theta;
    int64_t rotated;
  };
  CHECK(x.rank() == 3 && position.shape() == Shape{x.dim(0)} && position.dtype() == Dtype::i32, "rotary: x ",
        x.shape(), ", position ", position.shape(), " ", name_of(position.dtype()));
  const Turn turn{theta, rotated == 0 ? x.dim(2) : rotated};
  CHECK(turn.rotated % 2 == 0 && turn.rotated >= 0 && turn.rotated <= x.dim(2), "rotary: ", turn.rotated,
        " features of ", x.dim(2));
  const Tensor y = empty_like(x);
  ON_DEVICE(y.device(), rotary(y, x, position, turn.theta, turn.rotated, 1));
  return record("rotary", {x}, y, save(position), turn, [](Backward& grads, const Turn& turn) {
    const Tensor dy = grads.grad(), dx = empty_like(dy);
    ON_DEVICE(dy.device(), rotary(dx, dy, grads.saved(0), turn.theta, turn.rotated, -1));
    grads.add(0, dx);
  });
}

}  // namespace weft
