#include "autograd/ops/gated_rms_norm.h"

#include <cmath>

#include "autograd/ops/rows.h"
#include "autograd/parallel.h"

namespace weft::cpu {

void gated_rms_norm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x, const Tensor& gate,
                            double eps) {
  const int64_t n = x.dim(-1);
  with_float(x.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const Rows<T> in(x), gates(gate), out(y);
    A* r = rstd.data<A>();
    parallel_for(row_count(x), row_grain(n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T *a = in[i], *u = gates[i];
        T* b = out[i];
        const A squares = row_sum<A>(n, [=](int64_t j) { return A(a[j]) * A(a[j]); });
        const A s = A(1) / std::sqrt(squares / static_cast<A>(n) + static_cast<A>(eps));
        r[i] = s;
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) store(b[j], A(a[j]) * s * A(u[j]));
      }
    });
  });
}

void gated_rms_norm_backward(const Tensor& dx, const Tensor& dgate, const Tensor& x, const Tensor& gate,
                             const Tensor& rstd, const Tensor& dy) {
  const int64_t n = x.dim(-1);
  with_float(x.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const Rows<T> in(x), gates(gate), gradient(dy), to_x(dx), to_gate(dgate);
    const A* r = rstd.data<A>();
    parallel_for(row_count(x), row_grain(n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T *a = in[i], *u = gates[i], *d = gradient[i];
        T *b = to_x[i], *c = to_gate[i];
        const A s = r[i];
        // With h = x s and e = dy gate:  dx = s (e - h mean(e h)),  dgate = dy h.
        const A dot = row_sum<A>(n, [=](int64_t j) { return A(d[j]) * A(u[j]) * A(a[j]); });
        const A k = dot * s * s / static_cast<A>(n);
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) {
          store(b[j], s * (A(d[j]) * A(u[j]) - A(a[j]) * k));
          store(c[j], A(d[j]) * A(a[j]) * s);
        }
      }
    });
  });
}

}  // namespace weft::cpu
