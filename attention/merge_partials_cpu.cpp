#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/merge_partials.h"
#include "autograd/ops/rows.h"
#include "autograd/parallel.h"

namespace weft::cpu {
namespace {

// What the first and the second are worth; neither where there is no key.
template <class A>
struct Shares {
  A first, second, lse;
  Shares(A l, A m) {
    const A top = std::max(l, m);
    if (top == -std::numeric_limits<A>::infinity()) {
      first = second = 0;
      lse = top;
      return;
    }
    const A p = std::exp(l - top), r = std::exp(m - top);
    first = p / (p + r);
    second = r / (p + r);
    lse = top + std::log(p + r);
  }
};

}  // namespace

void merge_partials(const Tensor& o, const Tensor& lse, const Tensor& o1, const Tensor& lse1,
                    const Tensor& o2, const Tensor& lse2) {
  const int64_t d = o.dim(2);
  with_float(o.dtype(), [&]<class T>() {
    using A = Acc<T>;
    T* const outs = o.data<T>();
    A* const lses = lse.data<A>();
    const T *const firsts = o1.data<T>(), *const seconds = o2.data<T>();
    const A *const first_lses = lse1.data<A>(), *const second_lses = lse2.data<A>();
    parallel_for(lse.numel(), row_grain(d), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Shares<A> s(first_lses[i], second_lses[i]);
        lses[i] = s.lse;
        T* out = outs + i * d;
        const T *first = firsts + i * d, *second = seconds + i * d;
        for (int64_t c = 0; c < d; ++c) store(out[c], s.first * A(first[c]) + s.second * A(second[c]));
      }
    });
  });
}

void merge_partials_backward(const Tensor& d1, const Tensor& dlse1, const Tensor& d2, const Tensor& dlse2,
                             const Tensor& o1, const Tensor& lse1, const Tensor& o2, const Tensor& lse2,
                             const Tensor& d_o, const Tensor& d_lse) {
  const int64_t d = o1.dim(2);
  with_float(o1.dtype(), [&]<class T>() {
    using A = Acc<T>;
    T *const d_firsts = d1.data<T>(), *const d_seconds = d2.data<T>();
    A *const d_first_lses = dlse1.data<A>(), *const d_second_lses = dlse2.data<A>();
    const T *const firsts = o1.data<T>(), *const seconds = o2.data<T>(), *const d_outs = d_o.data<T>();
    const A *const first_lses = lse1.data<A>(), *const second_lses = lse2.data<A>(),
                   *const d_lses = d_lse.data<A>();
    parallel_for(lse1.numel(), row_grain(d), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Shares<A> s(first_lses[i], second_lses[i]);
        const T *first = firsts + i * d, *second = seconds + i * d, *g = d_outs + i * d;
        T *to_first = d_firsts + i * d, *to_second = d_seconds + i * d;
        A along = 0;
#pragma omp simd reduction(+ : along)
        for (int64_t c = 0; c < d; ++c) {
          along += A(g[c]) * (A(first[c]) - A(second[c]));
          store(to_first[c], s.first * A(g[c]));
          store(to_second[c], s.second * A(g[c]));
        }
        const A whole = d_lses[i], both = along * s.first * s.second;
        d_first_lses[i] = s.first * whole + both;
        d_second_lses[i] = s.second * whole - both;
      }
    });
  });
}

}  // namespace weft::cpu
