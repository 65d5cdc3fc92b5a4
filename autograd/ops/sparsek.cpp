#include "autograd/ops/sparsek.h"

namespace weft {

Variable sparsek(const Variable& z, int64_t k) {
  CHECK(z.rank() >= 1 && k >= 1 && is_float(z.dtype()), "sparsek: ", k, " of z ", z.shape(), " ",
        name_of(z.dtype()));
  const Tensor rows = z.value().contiguous();
  // Kept wide for the way back: a p rounded to 1 would look saturated.
  const Tensor p = empty(z.shape(), wide_of(z.dtype()), z.device());
  ON_DEVICE(p.device(), sparsek_forward(p, rows, k));
  return record("sparsek", {z}, p.to(z.dtype()), save(p), NoAttributes{},
                [](Backward& grads, const NoAttributes&) {
                  const Tensor dp = grads.grad().contiguous(), dz = empty_like(dp);
                  ON_DEVICE(dz.device(), sparsek_backward(dz, grads.saved(0), dp));
                  grads.add(0, dz);
                });
}

}  // namespace weft
