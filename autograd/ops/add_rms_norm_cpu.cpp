#include "autograd/ops/add_rms_norm.h"
#include "autograd/ops/convert.h"
#include "autograd/ops/rms_norm.h"

namespace weft::cpu {

void add_rms_norm_forward(const Tensor& sum, const Tensor& y, const Tensor& rstd, const Tensor& x,
                          const Tensor& branch, const Tensor& gain, double eps) {
  sum.copy_from(x);
  accumulate(sum, branch);
  rms_norm_forward(y, rstd, sum, gain, eps);
}

void add_rms_norm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& sum, const Tensor& rstd,
                           const Tensor& gain, const Tensor& dsum, const Tensor& dy) {
  rms_norm_backward(dx, dgain, sum, rstd, gain, dy);
  if (dsum.defined()) accumulate(dx, dsum);
}

}  // namespace weft::cpu
