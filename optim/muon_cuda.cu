#include "optim/muon.h"

#include "autograd/cuda/rows.cuh"
#include "optim/weight_types.h"

namespace weft::cuda {
namespace {

template <class T, int V>
void momentum_as(const Tensor& u, const Tensor& m, const Tensor& gradient, double beta, const Tensor& factors,
                 int64_t begin, int64_t end) {
  using A = Acc<T>;
  T *out = data<T>(u) + begin, *momentum = data<T>(m) + begin;
  const T* g = data<const T>(gradient) + begin;
  const double* f = data<const double>(factors);
  const double rest_of = 1 - beta;
  const auto b = static_cast<A>(beta);
  each((end - begin) / V, [=] __device__(int64_t i) {
    const A rest = static_cast<A>(rest_of * f[0]);
    const auto slope = load<true, V>(g + i * V, V);
    auto mean = load<true, V>(momentum + i * V, V);
    Vector<T, V> direction;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const A x = rest * A(slope.v[e]), next = b * A(mean.v[e]) + x;
      mean.v[e] = static_cast<T>(next);
      direction.v[e] = static_cast<T>(b * next + x);
    }
    store<true, V>(momentum + i * V, mean, V);
    store<true, V>(out + i * V, direction, V);
  });
}

template <class T>
void normalize_as(const Tensor& y, const Tensor& x, const Tensor& squares) {
  const Tensor factor = empty({1}, dtype_of<Acc<T>>(), Device::cuda);
  Acc<T>* k = data<Acc<T>>(factor);
  const double* sum = data<const double>(squares);
  each(1, [=] __device__(int64_t) { *k = static_cast<Acc<T>>(1 / ::max(::sqrt(*sum), 1e-30)); });
  map(
      x.numel(), data<T>(y), [=] __device__(Acc<T> v) { return *k * v; }, data<const T>(x));
}

template <class T, class Low, int V>
void apply_as(const Tensor& master, const Tensor& working, const Tensor& direction, double shape,
              const Tensor& factors, int64_t begin, int64_t end) {
  T* w = data<T>(master) + begin;
  Low* low = data<Low>(working) + begin;
  const T* u = data<const T>(direction) + begin;
  const double* f = data<const double>(factors);
  each((end - begin) / V, [=] __device__(int64_t i) {
    const T keep = static_cast<T>(f[1]), rate = static_cast<T>(f[2] * shape);
    Low* const copy = low + i * V;
    auto own = load<true, V>(w + i * V, V);
    const auto step = load<true, V>(u + i * V, V);
    Vector<Low, V> rounded;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      own.v[e] = keep * own.v[e] - rate * step.v[e];
      rounded.v[e] = static_cast<Low>(own.v[e]);
    }
    store<true, V>(w + i * V, own, V);
    if constexpr (!std::is_same_v<Low, T>) store<true, V>(copy, rounded, V);
  });
}

template <class T, class Low>
void apply(const Tensor& master, const Tensor& working, const Tensor& u, double shape,
           const Tensor& factors) {
  constexpr int V = Pack<T>::kSize;
  const int64_t n = master.numel();
  const bool packs = aligned(master.raw()) && aligned(working.raw()) && aligned(u.raw());
  const int64_t body = packs ? n / V * V : 0;
  apply_as<T, Low, V>(master, working, u, shape, factors, 0, body);
  apply_as<T, Low, 1>(master, working, u, shape, factors, body, n);
}

}  // namespace

void muon_momentum(const Tensor& u, const Tensor& m, const Tensor& gradient, double beta,
                   const Tensor& factors) {
  with_float(m.dtype(), [&]<class T>() {
    constexpr int V = Pack<T>::kSize;
    const int64_t n = m.numel();
    const bool packs = aligned(u.raw()) && aligned(m.raw()) && aligned(gradient.raw());
    const int64_t body = packs ? n / V * V : 0;
    momentum_as<T, V>(u, m, gradient, beta, factors, 0, body);
    momentum_as<T, 1>(u, m, gradient, beta, factors, body, n);
  });
}

void muon_normalize(const Tensor& y, const Tensor& x, const Tensor& squares) {
  with_float(x.dtype(), [&]<class T>() { normalize_as<T>(y, x, squares); });
}

void muon_apply(const Tensor& master, const Tensor& working, const Tensor& u, double shape,
                const Tensor& factors) {
  with_weights(master, working,
               [&]<class T, class Low>() { apply<T, Low>(master, working, u, shape, factors); });
}

}  // namespace weft::cuda
