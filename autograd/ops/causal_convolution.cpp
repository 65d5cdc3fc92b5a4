#include "autograd/ops/causal_convolution.h"

namespace weft {

Variable causal_convolution(const Variable& x, const Variable& kernel, const Tensor& documents) {
  CHECK(x.rank() == 2 && kernel.rank() == 2 && kernel.dim(0) == x.dim(1) && kernel.dtype() == x.dtype(),
        "causal_convolution: x ", x.shape(), " ", name_of(x.dtype()), ", kernel ", kernel.shape(), " ",
        name_of(kernel.dtype()));
  const Tensor first = documents.to(Device::cpu);  // itself, for callers who know their documents
  const int32_t* start = first.data<int32_t>();
  CHECK(first.dim(0) >= 1 && start[0] == 0 && start[first.dim(0) - 1] == x.dim(0),
        "causal_convolution: documents of other tokens than x ", x.shape());
  for (int64_t g = 0; g + 1 < first.dim(0); ++g)
    CHECK(start[g] <= start[g + 1] && start[g + 1] - start[g] <= kernel.dim(1), "causal_convolution: kernel ",
          kernel.shape(), ", a document of ", start[g + 1] - start[g]);
  const Tensor in = x.value().contiguous(), filter = kernel.value().contiguous(), y = empty_like(in);
  ON_DEVICE(y.device(), causal_convolution_forward(y, in, filter, first));
  return record("causal_convolution", {x, kernel}, y, save(in, filter, first), NoAttributes{},
                [](Backward& b, const NoAttributes&) {
                  const Tensor dx = empty_like(b.saved(0)), dkernel = empty_like(b.saved(1));
                  ON_DEVICE(dx.device(), causal_convolution_backward(dx, dkernel, b.saved(0), b.saved(1),
                                                                     b.saved(2), b.grad().contiguous()));
                  b.add(0, dx);
                  b.add(1, dkernel);
                });
}

}  // namespace weft
