#include "autograd/ops/embedding.h"

namespace weft {

Variable embedding(const Variable& table, const Tensor& ids) {
  CHECK(table.rank() == 2 && ids.rank() == 1 && ids.dtype() == Dtype::i32, "embedding: table ", table.shape(),
        ", ids ", ids.shape(), " ", name_of(ids.dtype()));
  const Tensor rows = table.value().contiguous();
  const Tensor y({ids.dim(0), table.dim(1)}, table.dtype(), table.device());
  ON_DEVICE(y.device(), embedding_forward(y, rows, ids));
  return record("embedding", {table}, y, save(ids), NoAttributes{}, [](Backward& grads, const NoAttributes&) {
    const Tensor dy = grads.grad().contiguous();
    const Into into = grads.into(0);
    ON_DEVICE(dy.device(), embedding_backward(into.target, dy, grads.saved(0), into.beta));
  });
}

}  // namespace weft
