#include "autograd/ops/top_k.h"

namespace weft {

Variable gather_last(const Variable& x, const Tensor& indices) {
  CHECK(x.rank() >= 1 && indices.rank() == x.rank() && indices.dtype() == Dtype::i32 &&
            indices.shape().with(-1, 0) == x.shape().with(-1, 0),
        "gather_last: x ", x.shape(), ", indices ", indices.shape(), " ", name_of(indices.dtype()));
  const Tensor rows = x.value().contiguous(), places = indices.contiguous();
  const Tensor y = empty(indices.shape(), x.dtype(), x.device());
  ON_DEVICE(y.device(), gather_last_forward(y, rows, places));
  struct Width {
    int64_t width;
  };
  return record("gather_last", {x}, y, save(places), Width{x.dim(-1)}, [](Backward& grads, const Width& a) {
    const Tensor dy = grads.grad().contiguous();
    const Tensor dx = empty(dy.shape().with(-1, a.width), dy.dtype(), dy.device());
    ON_DEVICE(dy.device(), gather_last_backward(dx, grads.saved(0), dy));
    grads.add(0, dx);
  });
}

Tensor running_top_k(const Tensor& x, int64_t k, int64_t rest) {
  CHECK(x.rank() == 2 && k >= 1 && rest >= 1 && k + rest <= x.dim(1), "running_top_k: ", k, " and ", rest,
        " of x ", x.shape());
  const Tensor indices = empty({x.dim(0), x.dim(1) - k - rest, k + rest}, Dtype::i32, x.device());
  ON_DEVICE(x.device(), running_top_k(indices, x.contiguous(), k));
  return indices;
}

Tensor marks(const Tensor& indices, int64_t width, Dtype dtype) {
  const Tensor y = empty(indices.shape().with(-1, width), dtype, indices.device());
  const Tensor ones = full(indices.shape(), 1, dtype, indices.device());
  ON_DEVICE(y.device(), gather_last_backward(y, indices.contiguous(), ones));
  return y;
}

TopK top_k(const Variable& x, int64_t k) {
  CHECK(x.rank() >= 1 && k >= 0 && k <= x.dim(-1), "top_k: ", k, " of x ", x.shape());
  CHECK(x.dim(-1) <= INT32_MAX, "top_k: rows of x ", x.shape(), " have more places than 32 bits number");
  const Tensor rows = x.value().contiguous();
  const Tensor indices = empty(x.shape().with(-1, k), Dtype::i32, x.device());
  ON_DEVICE(x.device(), top_k_indices(indices, rows));
  return {gather_last(x, indices), indices};
}

}  // namespace weft
