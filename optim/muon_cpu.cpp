#include <cmath>

#include "autograd/ops/rows.h"
#include "optim/blocks.h"
#include "optim/muon.h"
#include "optim/weight_types.h"

namespace weft::cpu {
namespace {

template <class T, class Low>
void apply(const Tensor& master, const Tensor& working, const Tensor& direction, double shape,
           const Tensor& factors) {
  T* w = master.data<T>();
  Low* low = working.data<Low>();
  const T* u = direction.data<T>();
  const auto k = static_cast<T>(factors.data<double>()[1]),
             r = static_cast<T>(factors.data<double>()[2] * shape);
  each_block(master.numel(), [=](int64_t, int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const T y = k * w[i] - r * u[i];
      w[i] = y;
      if constexpr (!std::is_same_v<Low, T>) store(low[i], y);
    }
  });
}

}  // namespace

void muon_momentum(const Tensor& u, const Tensor& m, const Tensor& gradient, double beta,
                   const Tensor& factors) {
  with_float(m.dtype(), [&]<class T>() {
    using A = Acc<T>;
    T *out = u.data<T>(), *momentum = m.data<T>();
    const T* g = gradient.data<T>();
    const auto b = static_cast<A>(beta), rest = static_cast<A>((1 - beta) * factors.data<double>()[0]);
    each_block(m.numel(), [=](int64_t, int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) {
        const A x = rest * A(g[i]);
        const A mean = b * A(momentum[i]) + x;
        store(momentum[i], mean);
        store(out[i], b * mean + x);
      }
    });
  });
}

void muon_normalize(const Tensor& y, const Tensor& x, const Tensor& squares) {
  const double factor = 1 / std::max(std::sqrt(*squares.data<double>()), 1e-30);
  with_float(x.dtype(), [&]<class T>() {
    using A = Acc<T>;
    T* to = y.data<T>();
    const T* from = x.data<T>();
    const auto k = static_cast<A>(factor);
    each_block(x.numel(), [=](int64_t, int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) store(to[i], k * A(from[i]));
    });
  });
}

void muon_apply(const Tensor& master, const Tensor& working, const Tensor& u, double shape,
                const Tensor& factors) {
  with_weights(master, working,
               [&]<class T, class Low>() { apply<T, Low>(master, working, u, shape, factors); });
}

}  // namespace weft::cpu
