#include "autograd/ops/sample.h"

namespace weft {

void sample_rows_into(const Tensor& to, const Tensor& logits, const Tensor& index, const DrawOptions& draws) {
  CHECK(logits.rank() == 2 && logits.dim(1) > 0 && index.shape() == Shape{logits.dim(0)} &&
            index.dtype() == Dtype::i32 && to.shape() == index.shape() && to.dtype() == Dtype::i32 &&
            to.dense(),
        "sample: logits ", logits.shape(), ", index ", index.shape());
  CHECK(draws.temperature >= 0 && draws.top_k >= 0 && draws.top_p > 0 && draws.top_p <= 1,
        "sample: temperature ", draws.temperature, ", top_k ", draws.top_k, ", top_p ", draws.top_p);
  if (to.numel() > 0) ON_DEVICE(logits.device(), sample_rows(to, logits, index, draws));
}

Tensor sample_rows(const Tensor& logits, const Tensor& index, const DrawOptions& draws) {
  const Tensor to = empty({index.numel()}, Dtype::i32, logits.device());
  sample_rows_into(to, logits, index, draws);
  return to;
}

void increment(const Tensor& x, const Tensor& y) {
  CHECK(
      x.dtype() == Dtype::i32 && y.dtype() == Dtype::i32 && x.dense() && y.dense() && x.numel() == y.numel(),
      "increment: x ", x.shape(), " ", name_of(x.dtype()), ", y ", y.shape(), " ", name_of(y.dtype()));
  ON_DEVICE(x.device(), increment(x, y));
}

}  // namespace weft
