#include "attention/sparsek_rows.h"

namespace weft {

Tensor pair_rows(const Tensor& indices, int64_t kept, int64_t gap, int64_t pairs) {
  CHECK(indices.rank() == 3 && indices.dtype() == Dtype::i32 && kept <= indices.dim(2), "pair_rows: ", kept,
        " of ", indices.shape(), " ", name_of(indices.dtype()));
  CHECK(indices.dim(0) * pairs <= INT32_MAX, "pair_rows: ", indices.dim(0), " runs of ", pairs,
        " pairs, more than 32 bits number");
  const Tensor rows = empty(indices.shape().with(2, kept), Dtype::i32, indices.device());
  ON_DEVICE(rows.device(), pair_rows(rows, indices.contiguous(), gap, pairs));
  return rows.reshape({indices.dim(0) * indices.dim(1), kept});
}

Tensor best_rows(const Tensor& scores, const Tensor& order, int64_t count) {
  CHECK(scores.rank() == 2 && order.rank() == 2 && order.dtype() == Dtype::i32 &&
            order.dim(0) == scores.dim(0) && count <= order.dim(1),
        "best_rows: ", count, " of ", order.shape(), " of scores ", scores.shape());
  CHECK(scores.numel() <= INT32_MAX, "best_rows: scores ", scores.shape(), " are more than 32 bits number");
  const Tensor rows = empty({scores.dim(0), count}, Dtype::i32, scores.device());
  ON_DEVICE(rows.device(), best_rows(rows, scores.contiguous(), order.contiguous()));
  return rows.reshape({rows.numel()});
}

Tensor numbers_of(const Tensor& x, Dtype dtype) {
  const Tensor y = empty(x.shape(), dtype, x.device());
  ON_DEVICE(y.device(), numbers_of(y, x.contiguous()));
  return y;
}

}  // namespace weft
