#include "autograd/ops/reduce.h"

#include <algorithm>
#include <cmath>

#include "autograd/ops/rows.h"
#include "autograd/parallel.h"

namespace weft::cpu {
namespace {

// f(outer, begin, end) over ranges of inner places, split along whichever of the two is long.
template <class F>
void each_range(int64_t outer, int64_t n, int64_t inner, F f) {
  if (outer > 1 || inner < 64) {
    parallel_for(outer, row_grain(n * inner), [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o) f(o, int64_t{0}, inner);
    });
  } else if (outer == 1) {
    parallel_for(inner, std::max<int64_t>(64, row_grain(n)),
                 [&](int64_t begin, int64_t end) { f(int64_t{0}, begin, end); });
  }
}

}  // namespace

void reduce_sum(const Tensor& y, const Tensor& x, double factor) {
  const int64_t n = x.dim(1), inner = x.dim(2);
  with_float(x.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const T* px = x.data<T>();
    T* py = y.data<T>();
    each_range(x.dim(0), n, inner, [&](int64_t o, int64_t begin, int64_t end) {
      const T* a = px + o * n * inner;
      T* b = py + o * inner;
      if (inner == 1) {
        const double sum = row_sum<double>(n, [=](int64_t k) { return static_cast<double>(A(a[k])); });
        store(b[0], static_cast<A>(factor * sum));
        return;
      }
      std::vector<double> sums(static_cast<size_t>(end - begin), 0.0);
      double* s = sums.data();
      for (int64_t k = 0; k < n; ++k) {
#pragma omp simd
        for (int64_t j = begin; j < end; ++j) s[j - begin] += static_cast<double>(A(a[k * inner + j]));
      }
      for (int64_t j = begin; j < end; ++j) store(b[j], static_cast<A>(factor * s[j - begin]));
    });
  });
}

void reduce_sum_backward(const Tensor& dx, const Tensor& dy, double factor) {
  const int64_t n = dx.dim(1), inner = dx.dim(2);
  with_float(dx.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const T* g = dy.data<T>();
    T* d = dx.data<T>();
    const auto k = static_cast<A>(factor);
    parallel_for(dx.dim(0) * n, row_grain(inner), [&](int64_t begin, int64_t end) {
      // No division for each element, which would cost more than all else where inner is 1.
      for (int64_t i = begin; i < end;) {
        const T* from = g + i / n * inner;
        for (const int64_t stop = std::min(end, (i / n + 1) * n); i < stop; ++i)
          for (int64_t j = 0; j < inner; ++j) store(d[i * inner + j], k * A(from[j]));
      }
    });
  });
}

void reduce_max(const Tensor& y, const Tensor& index, const Tensor& x) {
  const int64_t n = x.dim(1), inner = x.dim(2);
  with_float(x.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const T* px = x.data<T>();
    T* py = y.data<T>();
    int32_t* pi = index.data<int32_t>();
    each_range(x.dim(0), n, inner, [&](int64_t o, int64_t begin, int64_t end) {
      const T* a = px + o * n * inner;
      T* b = py + o * inner;
      int32_t* at = pi + o * inner;
      for (int64_t j = begin; j < end; ++j) {
        b[j] = a[j];
        at[j] = 0;
      }
      for (int64_t k = 1; k < n; ++k)
        for (int64_t j = begin; j < end; ++j) {
          const A candidate = A(a[k * inner + j]), best = A(b[j]);
          const bool better = candidate > best || (std::isnan(candidate) && !std::isnan(best));
          b[j] = better ? a[k * inner + j] : b[j];
          at[j] = better ? static_cast<int32_t>(k) : at[j];
        }
    });
  });
}

void reduce_max_backward(const Tensor& dx, const Tensor& index, const Tensor& dy) {
  const int64_t n = dx.dim(1), inner = dx.dim(2);
  const int32_t* at = index.data<int32_t>();
  dx.zero();
  with_float(dx.dtype(), [&]<class T>() {
    const T* g = dy.data<T>();
    T* d = dx.data<T>();
    for (int64_t o = 0; o < dx.dim(0); ++o)
      for (int64_t j = 0; j < inner; ++j) d[(o * n + at[o * inner + j]) * inner + j] = g[o * inner + j];
  });
}

}  // namespace weft::cpu
