#include "attention/selected_attention.h"

#include "autograd/flops.h"

namespace weft {

std::vector<Variable> selected_attention(const Variable& q, const Variable& k, const Variable& v,
                                         const Variable& gate, const Tensor& index,
                                         const SelectedOptions& options) {
  CHECK(q.rank() == 2 && k.rank() == 2 && v.rank() == 2 && q.dim(1) == k.dim(1) && k.dim(0) == v.dim(0) &&
            gate.rank() == 2 && gate.dim(0) == q.dim(0) && index.shape() == gate.shape() &&
            index.dtype() == Dtype::i32,
        "selected attention: q ", q.shape(), ", k ", k.shape(), ", v ", v.shape(), ", gate ", gate.shape(),
        ", index ", index.shape());
  CHECK(q.dtype() == wide_of(q.dtype()) && k.dtype() == q.dtype() && v.dtype() == q.dtype() &&
            gate.dtype() == q.dtype(),
        "selected attention: q ", name_of(q.dtype()), ", k ", name_of(k.dtype()));
  const int64_t groups = options.groups;
  CHECK(groups == 0 ? q.dim(0) == 0 : q.dim(0) % groups == 0 && k.dim(0) % groups == 0,
        "selected attention: q ", q.shape(), ", k ", k.shape(), " in ", options.groups, " groups");
  const Tensor Q = q.value().contiguous(), K = k.value().contiguous(), V = v.value().contiguous(),
               G = gate.value().contiguous(), rows = index.contiguous();
  const Tensor o = empty({q.dim(0), v.dim(1)}, q.dtype(), q.device()),
               lse = empty({q.dim(0)}, q.dtype(), q.device());
  ON_DEVICE(q.device(), selected_forward(o, lse, Q, K, V, G, rows, options));
  const auto pairs = static_cast<double>(gate.value().numel()), d = static_cast<double>(q.dim(1)),
             e = static_cast<double>(v.dim(1));
  count_flops(2 * pairs * (d + e));
  return record_many("selected_attention", {q, k, v, gate}, {o, lse}, save(Q, K, V, G, rows, o, lse), options,
                     [](Backward& b, const SelectedOptions& a) {
                       const Tensor dq = empty_like(b.saved(0)), dk = empty_like(b.saved(1)),
                                    dv = empty_like(b.saved(2)), d_gate = empty_like(b.saved(3));
                       const Tensor d_o = b.grad(0).contiguous(), d_lse = b.grad(1).contiguous();
                       ON_DEVICE(dq.device(), selected_backward(dq, dk, dv, d_gate, b.saved(0), b.saved(1),
                                                                b.saved(2), b.saved(3), b.saved(4),
                                                                b.saved(5), b.saved(6), d_o, d_lse, a));
                       const auto pairs = static_cast<double>(d_gate.numel());
                       count_flops(2 * pairs * static_cast<double>(3 * dq.dim(1) + 2 * dv.dim(1)));
                       b.add(0, dq);
                       b.add(1, dk);
                       b.add(2, dv);
                       b.add(3, d_gate);
                     });
}

}  // namespace weft
