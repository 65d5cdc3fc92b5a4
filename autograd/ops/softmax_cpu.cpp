#include "autograd/ops/softmax.h"

#include "autograd/ops/rows.h"
#include "autograd/ops/vector_math.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {
namespace {

// The largest element; 0 for a row of -infinity, so that a difference to it stays -infinity.
template <class A, class T>
A shift_of(const T* x, int64_t n) {
  const A m = row_max<A>(n, [=](int64_t j) { return A(x[j]); });
  return m == -std::numeric_limits<A>::infinity() ? A(0) : m;
}

template <class F>
void each_row(int64_t rows, int64_t width, F f) {
  parallel_for(rows, row_grain(4 * width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

}  // namespace

void softmax_forward(const Tensor& y, const Tensor& x) {
  const int64_t n = x.dim(-1);
  with_float(x.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const T* px = x.data<T>();
    T* py = y.data<T>();
    parallel_for(row_count(x), row_grain(4 * n), [&](int64_t begin, int64_t end) {
      Scratch<A> e(static_cast<size_t>(n));
      for (int64_t i = begin; i < end; ++i) {
        const T* a = px + i * n;
        T* b = py + i * n;
        A* p = e.data();
        const A m = shift_of<A>(a, n);
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) p[j] = vector_math::exp(A(a[j]) - m);
        const A sum = row_sum<A>(n, [=](int64_t j) { return p[j]; });
        const A k = sum == 0 ? A(0) : 1 / sum;
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) store(b[j], p[j] * k);
      }
    });
  });
}

void softmax_backward(const Tensor& dx, const Tensor& y, const Tensor& dy) {
  const int64_t n = y.dim(-1);
  with_float(y.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const T *py = y.data<T>(), *pg = dy.data<T>();
    T* px = dx.data<T>();
    each_row(row_count(y), n, [&](int64_t i) {
      const T *b = py + i * n, *g = pg + i * n;
      T* d = px + i * n;
      const A dot = row_sum<A>(n, [=](int64_t j) { return A(b[j]) * A(g[j]); });
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) store(d[j], A(b[j]) * (A(g[j]) - dot));
    });
  });
}

void log_sum_exp_forward(const Tensor& y, const Tensor& x) {
  const int64_t n = x.dim(-1);
  with_float(x.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const T* px = x.data<T>();
    A* py = y.data<A>();
    each_row(row_count(x), n, [&](int64_t i) {
      const T* a = px + i * n;
      const A m = shift_of<A>(a, n);
      py[i] = m + std::log(row_sum<A>(n, [=](int64_t j) { return vector_math::exp(A(a[j]) - m); }));
    });
  });
}

void log_sum_exp_backward(const Tensor& dx, const Tensor& x, const Tensor& y, const Tensor& dy) {
  const int64_t n = x.dim(-1);
  with_float(x.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const T *px = x.data<T>(), *pg = dy.data<T>();
    const A* py = y.data<A>();
    T* pd = dx.data<T>();
    each_row(row_count(x), n, [&](int64_t i) {
      const T* a = px + i * n;
      T* d = pd + i * n;
      const A lse = py[i] == -std::numeric_limits<A>::infinity() ? A(0) : py[i], g = A(pg[i]);
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) store(d[j], g * vector_math::exp(A(a[j]) - lse));
    });
  });
}

}  // namespace weft::cpu
