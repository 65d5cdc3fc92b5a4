#include "autograd/ops/sample.h"

namespace weft {

Tensor sample_rows(const Tensor& logits, const Tensor& index, const DrawOptions& draws) {
  CHECK(logits.rank() == 2 && logits.dim(1) > 0 && index.shape() == Shape{logits.dim(0)} &&
            index.dtype() == Dtype::i32,
        "sample: logits ", logits.shape(), ", index ", index.shape());
  CHECK(draws.temperature >= 0 && draws.top_k >= 0, "sample: temperature ", draws.temperature, ", top_k ",
        draws.top_k);
  const Tensor to = empty({logits.dim(0)}, Dtype::i32, logits.device());
  if (to.numel() > 0) ON_DEVICE(logits.device(), sample_rows(to, logits, index, draws));
  return to;
}

void increment(const Tensor& x) {
  CHECK(x.dtype() == Dtype::i32 && x.dense(), "increment: x ", x.shape(), " ", name_of(x.dtype()));
  ON_DEVICE(x.device(), increment(x));
}

}  // namespace weft
