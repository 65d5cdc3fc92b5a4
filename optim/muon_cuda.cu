#include "optim/muon.h"

#include "autograd/cuda/rows.cuh"
#include "optim/weight_types.h"

namespace weft::cuda {
namespace {

template <class T, int V>
void momentum_as(const Tensor& u, const Tensor& m, const Tensor& gradient, Acc<T> b, Acc<T> rest,
                 int64_t begin, int64_t end) {
  using A = Acc<T>;
  T *out = data<T>(u) + begin, *momentum = data<T>(m) + begin;
  const T* g = data<const T>(gradient) + begin;
  each((end - begin) / V, [=] __device__(int64_t i) {
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
void apply_as(const Tensor& master, const Tensor& working, const Tensor& direction, T keep, T rate,
              int64_t begin, int64_t end) {
  T* w = data<T>(master) + begin;
  Low* low = data<Low>(working) + begin;
  const T* u = data<const T>(direction) + begin;
  each((end - begin) / V, [=] __device__(int64_t i) {
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
void apply(const Tensor& master, const Tensor& working, const Tensor& u, double keep, double rate) {
  constexpr int V = Pack<T>::kSize;
  const int64_t n = master.numel();
  const auto k = static_cast<T>(keep), r = static_cast<T>(rate);
  const bool packs = aligned(master.raw()) && aligned(working.raw()) && aligned(u.raw());
  const int64_t body = packs ? n / V * V : 0;
  apply_as<T, Low, V>(master, working, u, k, r, 0, body);
  apply_as<T, Low, 1>(master, working, u, k, r, body, n);
}

}  // namespace

void muon_momentum(const Tensor& u, const Tensor& m, const Tensor& gradient, double beta, double scale) {
  with_float(m.dtype(), [&]<class T>() {
    using A = Acc<T>;
    constexpr int V = Pack<T>::kSize;
    const int64_t n = m.numel();
    const auto b = static_cast<A>(beta), rest = static_cast<A>((1 - beta) * scale);
    const bool packs = aligned(u.raw()) && aligned(m.raw()) && aligned(gradient.raw());
    const int64_t body = packs ? n / V * V : 0;
    momentum_as<T, V>(u, m, gradient, b, rest, 0, body);
    momentum_as<T, 1>(u, m, gradient, b, rest, body, n);
  });
}

void muon_normalize(const Tensor& y, const Tensor& x, const Tensor& squares) {
  with_float(x.dtype(), [&]<class T>() { normalize_as<T>(y, x, squares); });
}

void muon_apply(const Tensor& master, const Tensor& working, const Tensor& u, double keep, double rate) {
  with_weights(master, working, [&]<class T, class Low>() { apply<T, Low>(master, working, u, keep, rate); });
}

}  // namespace weft::cuda
