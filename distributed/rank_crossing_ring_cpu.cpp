#include <cmath>
#include <limits>

#include "autograd/parallel.h"
#include "distributed/rank_crossing_merge.h"

namespace weft::cpu {

void add_partial(const Tensor& o, const Tensor& lse, const Tensor& more_o, const Tensor& more_lse) {
  const int64_t width = o.dim(2);
  with_float(o.dtype(), [&]<class T>() {
    T *a = o.data<T>(), *l = lse.data<T>();
    const T *b = more_o.data<T>(), *m = more_lse.data<T>();
    parallel_for(lse.numel(), 1 + (1 << 14) / (width + 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto x = static_cast<Acc<T>>(l[i]), y = static_cast<Acc<T>>(m[i]), top = std::max(x, y);
        if (top == -std::numeric_limits<Acc<T>>::infinity()) continue;
        const Acc<T> p = std::exp(x - top), q = std::exp(y - top), sum = p + q;
        for (int64_t j = i * width; j < (i + 1) * width; ++j)
          a[j] = static_cast<T>((p * static_cast<Acc<T>>(a[j]) + q * static_cast<Acc<T>>(b[j])) / sum);
        l[i] = static_cast<T>(top + std::log(sum));
      }
    });
  });
}

}  // namespace weft::cpu
