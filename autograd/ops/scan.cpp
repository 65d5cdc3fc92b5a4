#include "autograd/ops/scan.h"

namespace weft {

std::vector<Variable> decay_scan(const Variable& a, const Variable& s, const Tensor& first) {
  const int64_t per_decay = a.value().row_size() == 0 ? 0 : s.value().row_size() / a.value().row_size();
  CHECK(a.dim(0) == s.dim(0) && a.value().row_size() * per_decay == s.value().row_size() &&
            a.dtype() == s.dtype(),
        "decay_scan: a ", a.shape(), ", s ", s.shape());
  const int64_t groups = first.dim(0) - 1;
  const Tensor x = a.value().contiguous(), y = s.value().contiguous();
  const Tensor a_before = empty_like(x), s_before = empty_like(y);
  const Tensor a_total = empty(x.shape().with(0, groups), x.dtype(), x.device());
  const Tensor s_total = empty(y.shape().with(0, groups), y.dtype(), y.device());
  ON_DEVICE(x.device(), decay_scan_forward(a_before, s_before, a_total, s_total, x, y, first));
  return record_many(
      "decay_scan", {a, s}, {a_before, s_before, a_total, s_total}, save(x, a_before, s_before, first),
      NoAttributes{}, [](Backward& b, const NoAttributes&) {
        const Tensor &a = b.saved(0), &s_before = b.saved(2);
        const Tensor da = empty_like(a), ds = empty_like(s_before);
        ON_DEVICE(a.device(), decay_scan_backward(da, ds, a, b.saved(1), s_before, b.saved(3),
                                                  b.grad(0).contiguous(), b.grad(1).contiguous(),
                                                  b.grad(2).contiguous(), b.grad(3).contiguous()));
        b.add(0, da);
        b.add(1, ds);
      });
}

}  // namespace weft
