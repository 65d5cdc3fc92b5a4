#include "autograd/ops/rows.h"
#include "optim/blocks.h"
#include "optim/gradient_norm.h"

namespace weft::cpu {

void sum_of_squares(const Tensor& to, const Tensor& x) {
  std::vector<double> sums(static_cast<size_t>(block_count(x.numel())));
  with_float(x.dtype(), [&]<class T>() {
    const T* p = x.data<T>();
    each_block(x.numel(), [&](int64_t block, int64_t begin, int64_t end) {
      sums[static_cast<size_t>(block)] = row_sum<double>(end - begin, [=](int64_t i) {
        const auto value = static_cast<double>(Acc<T>(p[begin + i]));
        return value * value;
      });
    });
  });
  *to.data<double>() = row_sum<double>(static_cast<int64_t>(sums.size()), [&](int64_t i) { return sums[i]; });
}

}  // namespace weft::cpu
