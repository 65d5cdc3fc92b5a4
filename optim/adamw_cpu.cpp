#include "optim/adamw.h"

#include <cmath>

#include "autograd/ops/rows.h"
#include "optim/blocks.h"
#include "optim/weight_types.h"

namespace weft::cpu {
namespace {

// Low is what is rounded into the working copy, T itself if master and working are one.
template <class T, class Low>
void update(const Tensor& master, const Tensor& working, const Tensor& moment1, const Tensor& moment2,
            const Tensor& gradient, const AdamWConfig& config, bool decays, const Tensor& factors) {
  T* w = master.data<T>();
  Low* low = working.data<Low>();
  T *m = moment1.data<T>(), *v = moment2.data<T>();
  const T* g = gradient.data<T>();
  const double* f = factors.data<double>();
  const auto scale = static_cast<T>(f[0]), keep = decays ? static_cast<T>(f[1]) : T(1);
  const auto rate = static_cast<T>(f[2]), root = static_cast<T>(f[3]), eps = static_cast<T>(config.eps);
  const auto beta1 = static_cast<T>(config.beta1), rest1 = static_cast<T>(1 - config.beta1);
  const auto beta2 = static_cast<T>(config.beta2), rest2 = static_cast<T>(1 - config.beta2);
  each_block(master.numel(), [=](int64_t, int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const T x = scale * g[i];
      const T mean = beta1 * m[i] + rest1 * x;
      const T square = beta2 * v[i] + rest2 * x * x;
      const T y = keep * w[i] - rate * mean / (std::sqrt(square) * root + eps);
      m[i] = mean;
      v[i] = square;
      w[i] = y;
      if constexpr (!std::is_same_v<Low, T>) store(low[i], y);
    }
  });
}

}  // namespace

void adamw(const Tensor& master, const Tensor& working, const Tensor& m, const Tensor& v,
           const Tensor& gradient, const AdamWConfig& config, bool decays, const Tensor& factors) {
  with_weights(master, working, [&]<class T, class Low>() {
    update<T, Low>(master, working, m, v, gradient, config, decays, factors);
  });
}

}  // namespace weft::cpu
