#include "attention/merge_partials.h"

namespace weft {

std::vector<Variable> merge_partials(const Variable& o1, const Variable& lse1, const Variable& o2,
                                     const Variable& lse2) {
  CHECK(o1.rank() == 3 && o2.shape() == o1.shape() && lse1.shape() == Shape({o1.dim(0), o1.dim(1)}) &&
            lse2.shape() == lse1.shape() && o2.dtype() == o1.dtype() && lse1.dtype() == wide_of(o1.dtype()) &&
            lse2.dtype() == lse1.dtype(),
        "merge_partials: o ", o1.shape(), " ", o2.shape(), ", lse ", lse1.shape(), " ", lse2.shape());
  const Tensor a = o1.value().contiguous(), b = o2.value().contiguous(), l = lse1.value().contiguous(),
               m = lse2.value().contiguous();
  const Tensor o = empty_like(a), lse = empty_like(l);
  ON_DEVICE(o.device(), merge_partials(o, lse, a, l, b, m));
  return record_many("merge_partials", {o1, lse1, o2, lse2}, {o, lse}, save(a, l, b, m), NoAttributes{},
                     [](Backward& grads, const NoAttributes&) {
                       const Tensor &a = grads.saved(0), &l = grads.saved(1);
                       const Tensor d1 = empty_like(a), dlse1 = empty_like(l), d2 = empty_like(a),
                                    dlse2 = empty_like(l);
                       ON_DEVICE(a.device(), merge_partials_backward(
                                                 d1, dlse1, d2, dlse2, a, l, grads.saved(2), grads.saved(3),
                                                 grads.grad(0).contiguous(), grads.grad(1).contiguous()));
                       grads.add(0, d1);
                       grads.add(1, dlse1);
                       grads.add(2, d2);
                       grads.add(3, dlse2);
                     });
}

}  // namespace weft
