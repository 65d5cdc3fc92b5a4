#include "autograd/ops/gates.h"

#include <tuple>

#include "autograd/ops/rows.h"

namespace weft {
namespace {

struct Factor {
  double value;
};

}  // namespace

template <class F>
Variable gate(const Variable& x, bool wide, double factor) {
  CHECK(x.rank() >= 1 && is_float(x.dtype()), "gate: x ", x.shape(), " ", name_of(x.dtype()));
  const Tensor rows = as_rows(x.value());
  const Tensor y = empty(x.shape(), wide ? wide_of(x.dtype()) : x.dtype(), x.device());
  ON_DEVICE(x.device(), gate_forward<F>(y, rows, factor));
  return record("gate", {x}, y, save(rows), Factor{factor}, [](Backward& grads, const Factor& factor) {
    const Tensor &x = grads.saved(0), dx = room_for_rows(grads, 0, x);
    ON_DEVICE(dx.device(), gate_backward<F>(dx, x, as_rows(grads.grad()), factor.value));
    grads.add(0, dx);
  });
}

namespace {
template <class... F>
constexpr auto instances_of_gates(FunctionList<F...>) {
  return std::tuple{&gate<F>...};
}
}  // namespace
[[maybe_unused]] extern const auto gate_instances = instances_of_gates(GateFunctions{});

}  // namespace weft
