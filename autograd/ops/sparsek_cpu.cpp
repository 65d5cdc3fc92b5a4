#include <algorithm>
#include <cmath>
#include <functional>

#include "autograd/ops/rows.h"
#include "autograd/ops/sparsek.h"
#include "autograd/ops/sparsek_threshold.h"
#include "autograd/parallel.h"

namespace weft::cpu {
void sparsek_forward(const Tensor& p, const Tensor& z, int64_t k) {
  const int64_t m = z.dim(-1);
  with_float(z.dtype(), [&]<class T>() {
    const T* from = z.data<T>();
    Acc<T>* to = p.data<Acc<T>>();
    parallel_for(row_count(z), row_grain(8 * m), [&](int64_t begin, int64_t end) {
      // Differences to the highest score, in f64: |I| of them are summed.
      std::vector<double> sorted;
      for (int64_t i = begin; i < end; ++i) {
        const T* row = from + i * m;
        sorted.clear();
        for (int64_t j = 0; j < m; ++j)
          if (static_cast<double>(row[j]) > -std::numeric_limits<double>::infinity())
            sorted.push_back(static_cast<double>(row[j]));
        if (!std::is_sorted(sorted.begin(), sorted.end(), std::greater<>()))
          std::sort(sorted.begin(), sorted.end(), std::greater<>());
        const bool all = static_cast<int64_t>(sorted.size()) <= k;
        const double top = sorted.empty() ? 0 : sorted[0];
        for (double& s : sorted) s -= top;
        const double tau = all ? 0 : sparsek_threshold(sorted, k);
        for (int64_t j = 0; j < m; ++j) {
          const auto score = static_cast<double>(row[j]);
          const bool none = score == -std::numeric_limits<double>::infinity();
          to[i * m + j] = Acc<T>(none ? 0 : all ? 1 : std::clamp(score - top - tau, 0.0, 1.0));
        }
      }
    });
  });
}

void sparsek_backward(const Tensor& dz, const Tensor& p, const Tensor& dp) {
  const int64_t m = p.dim(-1);
  with_float(dz.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const A* at = p.data<A>();
    const T* g = dp.data<T>();
    T* d = dz.data<T>();
    parallel_for(row_count(p), row_grain(2 * m), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto between = [&](int64_t j) { return at[j] > 0 && at[j] < 1; };
        double sum = 0, count = 0;
        for (int64_t j = i * m; j < (i + 1) * m; ++j)
          if (between(j)) {
            sum += static_cast<double>(A(g[j]));
            ++count;
          }
        for (int64_t j = i * m; j < (i + 1) * m; ++j)
          store(d[j], between(j) ? A(static_cast<double>(A(g[j])) - sum / count) : A(0));
      }
    });
  });
}

}  // namespace weft::cpu
