#include "autograd/ops/few_rows.h"

#include "autograd/flops.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/rms_norm.h"
#include "autograd/ops/swiglu.h"
#ifdef WEFT_CUDA
#include "autograd/cuda/few_rows.h"
#endif

namespace weft {

bool few_rows_fused([[maybe_unused]] const Tensor& x, [[maybe_unused]] const Tensor& weight,
                    [[maybe_unused]] const Around& around) {
#ifdef WEFT_CUDA
  return Tape::current() == nullptr && x.device() == Device::cuda && cuda::few_rows_serves(x, weight, around);
#else
  return false;
#endif
}

Tensor few_rows_linear(const Tensor& x, const Tensor& weight, const Around& around) {
  CHECK(x.rank() == 2 && weight.rank() == 2 && x.dim(1) == weight.dim(1) && x.dtype() == weight.dtype(),
        "few rows: x ", x.shape(), ", weight ", weight.shape());
  CHECK(!around.swiglu || weight.dim(0) % 2 == 0, "few rows: gates of ", weight.shape());
  const Shape shape{x.dim(0), around.swiglu ? weight.dim(0) / 2 : weight.dim(0)};
  const Tensor &gain = around.gain, &residual = around.residual;
  const int64_t normed = around.norm_size > 0 ? around.norm_size : x.dim(1);
  CHECK(x.dim(1) % normed == 0 && (!gain.defined() || gain.shape() == Shape{normed}), "few rows: x ",
        x.shape(), ", gain ", gain.shape());
  CHECK(!residual.defined() || (residual.shape() == shape && residual.dtype() == x.dtype()), "few rows: y ",
        shape, ", residual ", residual.shape());
  CHECK(!around.wide || (!around.swiglu && !residual.defined()), "few rows: what is wide is a product alone");
  const Dtype type = around.wide ? wide_of(x.dtype()) : x.dtype();
#ifdef WEFT_CUDA
  if (few_rows_fused(x, weight, around)) {
    const Tensor y = empty(shape, type, x.device());
    count_flops(2.0 * static_cast<double>(x.dim(0) * weight.numel()));
    cuda::few_rows(y, x, weight, 1, 0, around);
    return y;
  }
#endif
  const NoTape pause;
  Variable in = x;
  if (around.norm)
    in = reshape(rms_norm(reshape(x, {x.dim(0), x.dim(1) / normed, normed}),
                          gain.defined() ? Variable(gain) : Variable(), around.eps),
                 x.shape());
  if (around.wide) {
    const Tensor y = empty(shape, type, x.device());
    gemm(y, in, weight, {false, true}, 1, 0);
    return y;
  }
  Variable y = linear(in, weight);
  if (around.swiglu) y = swiglu(y);
  return residual.defined() ? add(residual, y) : y;
}

}  // namespace weft
