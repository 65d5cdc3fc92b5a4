#include "optim/adamw.h"

#include <cmath>

#include "autograd/cuda/rows.cuh"
#include "optim/weight_types.h"

namespace weft::cuda {
namespace {

template <class T>
struct Constants {
  T beta1, rest1, beta2, rest2, eps;
  bool decays;
};

// One pass over everything, V elements a thread at a time. low: what is rounded into the working copy, null
// if master and working are one.
template <class T, class Low, bool whole>
__global__ void __launch_bounds__(kThreads) adamw_kernel(T* master, Low* low, T* m, T* v, const T* gradient,
                                                         int64_t n, Constants<T> f, const double* factors) {
  constexpr int V = Pack<T>::kSize;
  const T scale = static_cast<T>(factors[0]), keep = f.decays ? static_cast<T>(factors[1]) : T(1),
          rate = static_cast<T>(factors[2]), root = static_cast<T>(factors[3]);
  const int64_t step = int64_t{gridDim.x} * blockDim.x * V;
  for (int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * V; i < n; i += step) {
    const int64_t count = n - i;
    auto w = load<whole, V>(master + i, count), mean = load<whole, V>(m + i, count),
         square = load<whole, V>(v + i, count);
    const auto g = load<whole, V>(gradient + i, count);
    Vector<Low, V> rounded;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const T x = scale * g.v[e];
      mean.v[e] = f.beta1 * mean.v[e] + f.rest1 * x;
      square.v[e] = f.beta2 * square.v[e] + f.rest2 * x * x;
      w.v[e] = keep * w.v[e] - rate * mean.v[e] / (std::sqrt(square.v[e]) * root + f.eps);
      rounded.v[e] = static_cast<Low>(w.v[e]);
    }
    store<whole, V>(m + i, mean, count);
    store<whole, V>(v + i, square, count);
    store<whole, V>(master + i, w, count);
    if constexpr (!std::is_same_v<Low, T>) store<whole, V>(low + i, rounded, count);
  }
}

template <class T, class Low>
void update(const Tensor& master, const Tensor& working, const Tensor& moment1, const Tensor& moment2,
            const Tensor& gradient, const AdamWConfig& config, bool decays, const Tensor& factors) {
  const int64_t n = master.numel();
  if (n == 0) return;
  const Constants<T> f{.beta1 = static_cast<T>(config.beta1),
                       .rest1 = static_cast<T>(1 - config.beta1),
                       .beta2 = static_cast<T>(config.beta2),
                       .rest2 = static_cast<T>(1 - config.beta2),
                       .eps = static_cast<T>(config.eps),
                       .decays = decays};
  T *w = data<T>(master), *m = data<T>(moment1), *v = data<T>(moment2);
  Low* low = data<Low>(working);
  const T* g = data<const T>(gradient);
  const auto launch = [&](auto kernel, int64_t count, T* w_at, Low* low_at, T* m_at, T* v_at, const T* g_at) {
    constexpr int V = Pack<T>::kSize;
    kernel<<<blocks_for((count + V - 1) / V), kThreads, 0, stream()>>>(w_at, low_at, m_at, v_at, g_at, count,
                                                                       f, data<const double>(factors));
    check_launch("adamw");
  };
  const int64_t body = n / Pack<T>::kSize * Pack<T>::kSize;
  if (aligned(w) && aligned(low) && aligned(m) && aligned(v) && aligned(g) && body > 0) {
    launch(adamw_kernel<T, Low, true>, body, w, low, m, v, g);
    if (body < n)
      launch(adamw_kernel<T, Low, false>, n - body, w + body, low + body, m + body, v + body, g + body);
  } else {
    launch(adamw_kernel<T, Low, false>, n, w, low, m, v, g);
  }
}

}  // namespace

void adamw(const Tensor& master, const Tensor& working, const Tensor& m, const Tensor& v,
           const Tensor& gradient, const AdamWConfig& config, bool decays, const Tensor& factors) {
  with_weights(master, working, [&]<class T, class Low>() {
    update<T, Low>(master, working, m, v, gradient, config, decays, factors);
  });
}

}  // namespace weft::cuda
