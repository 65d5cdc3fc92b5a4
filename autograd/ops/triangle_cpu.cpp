#include <algorithm>
#include <vector>

#include "autograd/ops/triangle.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {

void lower_triangle(const Tensor& y, const Tensor& x, int64_t diagonal, double fill) {
  const int64_t columns = x.dim(-1), rows = x.dim(-2);
  with_float(x.dtype(), [&]<class T>() {
    const T* from = x.data<T>();
    T* to = y.data<T>();
    const T blank = static_cast<T>(static_cast<Acc<T>>(fill));
    parallel_for(x.shape().product(0, x.rank() - 1), 1 + (1 << 14) / (columns + 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t r = begin; r < end; ++r) {
                     const int64_t kept = std::clamp<int64_t>(r % rows + diagonal + 1, 0, columns);
                     std::copy(from + r * columns, from + r * columns + kept, to + r * columns);
                     std::fill(to + r * columns + kept, to + (r + 1) * columns, blank);
                   }
                 });
  });
}

void cumulative_sum(const Tensor& y, const Tensor& x, int axis, bool reverse) {
  const int64_t inner = x.shape().product(axis + 1, x.rank()), n = x.dim(axis);
  if (x.numel() == 0) return;
  with_float(x.dtype(), [&]<class T>() {
    const T* from = x.data<T>();
    T* to = y.data<T>();
    parallel_for(x.shape().product(0, axis), 1 + (1 << 14) / (inner * n), [&](int64_t begin, int64_t end) {
      Scratch<Acc<T>> sum(static_cast<size_t>(inner));
      for (int64_t o = begin; o < end; ++o) {
        std::fill(sum.begin(), sum.end(), Acc<T>(0));
        for (int64_t k = 0; k < n; ++k) {
          const int64_t at = (o * n + (reverse ? n - 1 - k : k)) * inner;
          for (int64_t i = 0; i < inner; ++i)
            to[at + i] = static_cast<T>(sum[i] += static_cast<Acc<T>>(from[at + i]));
        }
      }
    });
  });
}

void solve_unit_lower(const Tensor& y, const Tensor& a, const Tensor& x, bool transposed) {
  const int64_t n = x.dim(-2), d = x.dim(-1);
  if (x.numel() == 0) return;
  with_float(x.dtype(), [&]<class T>() {
    using Wide = Acc<T>;
    const T *matrix = a.data<T>(), *right = x.data<T>();
    T* to = y.data<T>();
    parallel_for(x.numel() / (n * d), 1 + (1 << 14) / (n * n * d), [&](int64_t begin, int64_t end) {
      std::vector<Wide> rows(static_cast<size_t>(n * d));
      for (int64_t m = begin; m < end; ++m) {
        for (int64_t i = 0; i < n * d; ++i) rows[i] = static_cast<Wide>(right[m * n * d + i]);
        for (int64_t step = 0; step < n; ++step) {
          const int64_t i = transposed ? n - 1 - step : step;
          const int64_t first = transposed ? i + 1 : 0, last = transposed ? n : i;
          Wide* row = rows.data() + i * d;
          for (int64_t j = first; j < last; ++j) {
            const Wide factor = static_cast<Wide>(matrix[m * n * n + (transposed ? j * n + i : i * n + j)]);
            const Wide* other = rows.data() + j * d;
            for (int64_t c = 0; c < d; ++c) row[c] -= factor * other[c];
          }
        }
        for (int64_t i = 0; i < n * d; ++i) to[m * n * d + i] = static_cast<T>(rows[i]);
      }
    });
  });
}

}  // namespace weft::cpu
