#include "autograd/ops/triangle.h"

namespace weft {

Variable lower_triangle(const Variable& input, int64_t diagonal, double fill) {
  CHECK(input.rank() >= 2, "lower_triangle: ", input.shape());
  const Tensor x = input.value().contiguous(), y = empty_like(x);
  ON_DEVICE(x.device(), lower_triangle(y, x, diagonal, fill));
  struct Diagonal {
    int64_t diagonal;
  };
  return record("lower_triangle", {input}, y, save(), Diagonal{diagonal}, [](Backward& b, const Diagonal& d) {
    const Tensor g = b.grad().contiguous(), dx = empty_like(g);
    ON_DEVICE(g.device(), lower_triangle(dx, g, d.diagonal, 0));
    b.add(0, dx);
  });
}

Variable cumulative_sum(const Variable& input, int axis) {
  const Tensor x = input.value().contiguous(), y = empty_like(x);
  struct Axis {
    int axis;
  };
  const Axis a{x.shape().index(axis)};
  ON_DEVICE(x.device(), cumulative_sum(y, x, a.axis, false));
  return record("cumulative_sum", {input}, y, save(), a, [](Backward& b, const Axis& a) {
    const Tensor g = b.grad().contiguous(), dx = empty_like(g);
    ON_DEVICE(g.device(), cumulative_sum(dx, g, a.axis, true));
    b.add(0, dx);
  });
}

}  // namespace weft
