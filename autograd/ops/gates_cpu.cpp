#include "autograd/ops/gates.h"

#include <tuple>

#include "autograd/ops/rows.h"
#include "autograd/parallel.h"

namespace weft::cpu {
namespace {

// f.operator()<X, Y>() for x's type and y's.
template <class F>
void with_types(Dtype x, Dtype y, F f) {
  with_float(x, [&]<class X>() {
    if constexpr (!std::is_same_v<X, Acc<X>>)
      if (x != y) return f.template operator()<X, Acc<X>>();
    f.template operator()<X, X>();
  });
}

// f(row, columns of a row) for all rows of x.
template <class F>
void each_row(const Tensor& x, F f) {
  const int64_t n = x.dim(-1);
  parallel_for(row_count(x), row_grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i, n);
  });
}

}  // namespace

template <class F>
void gate_forward(const Tensor& y, const Tensor& x, double factor) {
  with_types(x.dtype(), y.dtype(), [&]<class X, class Y>() {
    using A = Acc<X>;
    const Rows<X> from(x);
    const Rows<Y> to(y);
    const A scale = static_cast<A>(factor);
    each_row(x, [&](int64_t row, int64_t n) {
      const X* a = from[row];
      Y* b = to[row];
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) store(b[j], scale * F::forward(A(a[j])));
    });
  });
}

template <class F>
void gate_backward(const Tensor& dx, const Tensor& x, const Tensor& dy, double factor) {
  with_types(x.dtype(), dy.dtype(), [&]<class X, class Y>() {
    using A = Acc<X>;
    const Rows<X> from(x), to(dx);
    const Rows<Y> gradient(dy);
    const A scale = static_cast<A>(factor);
    each_row(x, [&](int64_t row, int64_t n) {
      const X* a = from[row];
      const Y* d = gradient[row];
      X* b = to[row];
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        const A v = A(a[j]);
        store(b[j], scale * A(d[j]) * F::derivative(v, F::forward(v)));
      }
    });
  });
}

namespace {
template <class... F>
constexpr auto instances(FunctionList<F...>) {
  return std::tuple{std::pair{&gate_forward<F>, &gate_backward<F>}...};
}
}  // namespace
[[maybe_unused]] extern const auto gate_kernels = instances(GateFunctions{});

}  // namespace weft::cpu
