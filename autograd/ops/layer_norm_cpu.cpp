#include "autograd/ops/layer_norm.h"

#include <cmath>

#include "autograd/ops/rows.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {

void layer_norm_forward(const Tensor& y, const Tensor& statistics, const Tensor& x, const Tensor& gain,
                        const Tensor& bias, double eps) {
  const int64_t n = x.dim(-1);
  with_float(x.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const Scratch<A> ones(gain.defined() ? 0 : n, A(1)), none(bias.defined() ? 0 : n, A(0));
    const A* g = gain.defined() ? gain.data<A>() : ones.data();
    const A* shift = bias.defined() ? bias.data<A>() : none.data();
    const Rows<T> in(x);
    const Rows<T> out(y);
    A* s = statistics.data<A>();
    parallel_for(row_count(x), row_grain(n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* a = in[i];
        T* b = out[i];
        const A mean = row_sum<A>(n, [=](int64_t j) { return A(a[j]); }) / static_cast<A>(n);
        const A squares = row_sum<A>(n, [=](int64_t j) { return (A(a[j]) - mean) * (A(a[j]) - mean); });
        const A r = A(1) / std::sqrt(squares / static_cast<A>(n) + static_cast<A>(eps));
        s[2 * i] = mean;
        s[2 * i + 1] = r;
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) store(b[j], (A(a[j]) - mean) * r * g[j] + shift[j]);
      }
    });
  });
}

void layer_norm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& dbias, const Tensor& x,
                         const Tensor& statistics, const Tensor& gain, const Tensor& dy) {
  const int64_t n = x.dim(-1), rows = row_count(x);
  const RowBlocks blocks = layer_norm_blocks(rows);
  dgain.zero();
  dbias.zero();
  with_float(x.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const Scratch<A> ones(gain.defined() ? 0 : n, A(1));
    const A* g = gain.defined() ? gain.data<A>() : ones.data();
    const A* s = statistics.data<A>();
    const Rows<T> in(x), out_gradient(dy);
    const Rows<T> in_gradient(dx);
    parallel_for(blocks.count, row_grain(blocks.size * n), [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        A *gain_sum = dgain.data<A>() + block * n, *bias_sum = dbias.data<A>() + block * n;
        for (int64_t i = block * blocks.size; i < std::min(rows, (block + 1) * blocks.size); ++i) {
          const T *a = in[i], *d = out_gradient[i];
          T* b = in_gradient[i];
          const A mean = s[2 * i], r = s[2 * i + 1], per = A(1) / static_cast<A>(n);
          // With h = (x - mean) r and e = dy gain:  dx = r (e - mean(e) - h mean(e h)).
          const A mean_e = per * row_sum<A>(n, [=](int64_t j) { return A(d[j]) * g[j]; });
          const A mean_eh =
              per * r * row_sum<A>(n, [=](int64_t j) { return A(d[j]) * g[j] * (A(a[j]) - mean); });
#pragma omp simd
          for (int64_t j = 0; j < n; ++j) {
            const A h = (A(a[j]) - mean) * r;
            gain_sum[j] += A(d[j]) * h;
            bias_sum[j] += A(d[j]);
            store(b[j], r * (A(d[j]) * g[j] - mean_e - h * mean_eh));
          }
        }
      }
    });
  });
}

}  // namespace weft::cpu
