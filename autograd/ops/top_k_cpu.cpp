#include "autograd/ops/top_k.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "autograd/ops/rows.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {

void gather_last_forward(const Tensor& y, const Tensor& x, const Tensor& indices) {
  const int64_t k = indices.dim(-1), m = x.dim(-1);
  const int32_t* at = indices.data<int32_t>();
  for (int64_t i = 0; i < indices.numel(); ++i)
    CHECK(at[i] >= 0 && at[i] < m, "gather_last: index ", at[i], " in a row of ", m);
  with_float(x.dtype(), [&]<class T>() {
    const T* a = x.data<T>();
    T* b = y.data<T>();
    parallel_for(row_count(y), row_grain(k), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t j = i * k; j < (i + 1) * k; ++j) b[j] = a[i * m + at[j]];
    });
  });
}

void gather_last_backward(const Tensor& dx, const Tensor& indices, const Tensor& dy) {
  const int64_t k = indices.dim(-1), m = dx.dim(-1);
  const int32_t* at = indices.data<int32_t>();
  with_float(dx.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const T* g = dy.data<T>();
    T* d = dx.data<T>();
    parallel_for(row_count(dy), row_grain(m), [&](int64_t begin, int64_t end) {
      Scratch<A> row(static_cast<size_t>(m));
      for (int64_t i = begin; i < end; ++i) {
        std::fill(row.begin(), row.end(), A(0));
        for (int64_t j = i * k; j < (i + 1) * k; ++j) row[at[j]] += A(g[j]);
        for (int64_t j = 0; j < m; ++j) store(d[i * m + j], row[j]);
      }
    });
  });
}

void top_k_indices(const Tensor& indices, const Tensor& x) {
  const int64_t k = indices.dim(-1), m = x.dim(-1);
  int32_t* at = indices.data<int32_t>();
  with_float(x.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const T* px = x.data<T>();
    parallel_for(row_count(x), row_grain(8 * m), [&](int64_t begin, int64_t end) {
      std::vector<int32_t> order(static_cast<size_t>(m));
      for (int64_t i = begin; i < end; ++i) {
        const T* a = px + i * m;
        std::iota(order.begin(), order.end(), 0);
        std::partial_sort(order.begin(), order.begin() + k, order.end(), [=](int32_t p, int32_t q) {
          const A u = A(a[p]), v = A(a[q]);
          if (std::isnan(u) || std::isnan(v)) return std::isnan(u) && (!std::isnan(v) || p < q);
          return u > v || (u == v && p < q);
        });
        std::copy_n(order.begin(), k, at + i * k);
      }
    });
  });
}

void running_top_k(const Tensor& indices, const Tensor& x, int64_t k) {
  const int64_t steps = indices.dim(1), both = indices.dim(2), m = x.dim(1);
  with_float(x.dtype(), [&]<class T>() {
    using A = Acc<T>;
    parallel_for(x.dim(0), row_grain(both * m), [&](int64_t begin, int64_t end) {
      std::vector<int32_t> best(static_cast<size_t>(both));
      const auto middle = best.begin() + k;
      for (int64_t i = begin; i < end; ++i) {
        const T* row = x.data<T>() + i * m;
        const auto before = [=](int32_t p, int32_t q) {
          const A u = A(row[p]), v = A(row[q]);
          return u > v || (u == v && p < q);
        };
        // Puts one into a sorted list; what falls out at its end, perhaps that one itself.
        const auto enter = [&](auto first, auto last, int32_t one) {
          const int32_t worst = *(last - 1);
          if (!before(one, worst)) return one;
          const auto place = std::upper_bound(first, last, one, before);
          std::move_backward(place, last - 1, last);
          *place = one;
          return worst;
        };
        std::iota(best.begin(), best.end(), 0);
        std::sort(best.begin(), middle, before);
        std::sort(middle, best.end(), before);
        for (int64_t c = 0; c < steps; ++c) {
          enter(middle, best.end(), enter(best.begin(), middle, static_cast<int32_t>(both + c)));
          std::copy(best.begin(), best.end(), indices.data<int32_t>() + (i * steps + c) * both);
        }
      }
    });
  });
}

}  // namespace weft::cpu
