#include "autograd/ops/rms_norm.h"

#include <cmath>

#include "autograd/ops/rows.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {

void rms_norm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x, const Tensor& gain, double eps) {
  const int64_t n = x.dim(-1);
  with_float(x.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const Scratch<A> ones(gain.defined() ? 0 : n, A(1));
    const A* g = gain.defined() ? gain.data<A>() : ones.data();
    const Rows<T> in(x);
    const Rows<T> out(y);
    A* r = rstd.data<A>();
    parallel_for(row_count(x), row_grain(n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* a = in[i];
        T* b = out[i];
        const A squares = row_sum<A>(n, [=](int64_t j) { return A(a[j]) * A(a[j]); });
        const A s = A(1) / std::sqrt(squares / static_cast<A>(n) + static_cast<A>(eps));
        r[i] = s;
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) store(b[j], A(a[j]) * s * g[j]);
      }
    });
  });
}

void rms_norm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& x, const Tensor& rstd,
                       const Tensor& gain, const Tensor& dy) {
  const int64_t n = x.dim(-1), rows = row_count(x);
  const RowBlocks blocks = norm_blocks(rows);
  dgain.zero();
  with_float(x.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const Scratch<A> ones(gain.defined() ? 0 : n, A(1));
    const A* g = gain.defined() ? gain.data<A>() : ones.data();
    const A* r = rstd.data<A>();
    const Rows<T> in(x), out_gradient(dy);
    const Rows<T> in_gradient(dx);
    parallel_for(blocks.count, row_grain(blocks.size * n), [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        A* sum = dgain.data<A>() + block * n;
        for (int64_t i = block * blocks.size; i < std::min(rows, (block + 1) * blocks.size); ++i) {
          const T *a = in[i], *d = out_gradient[i];
          T* b = in_gradient[i];
          const A s = r[i];
          // With h = x s and e = dy gain:  dx = s (e - h mean(e h)),  dgain = sum of dy h.
          const A dot = row_sum<A>(n, [=](int64_t j) { return A(d[j]) * g[j] * A(a[j]); });
          const A k = dot * s * s / static_cast<A>(n);
#pragma omp simd
          for (int64_t j = 0; j < n; ++j) {
            sum[j] += A(d[j]) * A(a[j]) * s;
            store(b[j], s * (A(d[j]) * g[j] - A(a[j]) * k));
          }
        }
      }
    });
  });
}

}  // namespace weft::cpu
