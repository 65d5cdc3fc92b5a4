#include "autograd/ops/triangle.h"

#include "autograd/flops.h"
#include "autograd/ops/matmul.h"

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

namespace {

// Half of the products of a full matrix.
void count_substitution(const Tensor& x) {
  count_flops(static_cast<double>(x.numel()) * static_cast<double>(x.dim(-2)));
}

}  // namespace

Variable solve_unit_lower(const Variable& matrix, const Variable& right) {
  CHECK(matrix.rank() >= 2 && matrix.rank() == right.rank() && matrix.dim(-1) == matrix.dim(-2) &&
            right.dim(-2) == matrix.dim(-1) && right.dtype() == matrix.dtype() &&
            right.shape().product(0, right.rank() - 2) == matrix.shape().product(0, matrix.rank() - 2),
        "solve_unit_lower: a ", matrix.shape(), ", x ", right.shape());
  const Tensor a = matrix.value().contiguous(), x = right.value().contiguous(), y = empty_like(x);
  count_substitution(x);
  ON_DEVICE(x.device(), solve_unit_lower(y, a, x, false));
  return record("solve_unit_lower", {matrix, right}, y, save(a, y), NoAttributes{},
                [](Backward& b, const NoAttributes&) {
                  const Tensor &a = b.saved(0), &y = b.saved(1);
                  const Tensor g = b.grad().contiguous(), dx = empty_like(g), product = empty_like(a),
                               da = empty_like(a);
                  count_substitution(g);
                  ON_DEVICE(g.device(), solve_unit_lower(dx, a, g, true));
                  b.add(1, dx);
                  if (!b.wants(0)) return;
                  gemm(product, dx, y, {false, true}, -1, 0);
                  ON_DEVICE(g.device(), lower_triangle(da, product, -1, 0));
                  b.add(0, da);
                });
}

}  // namespace weft
