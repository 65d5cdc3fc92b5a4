#include "autograd/ops/swiglu.h"

#include "autograd/cuda/early.cuh"
#include "autograd/cuda/rounded_math.cuh"

namespace weft::cuda {
namespace {

// f(row, column) for each vector of V columns of an (N, n) tensor.
template <int V, class F>
void each_place(int64_t rows, int64_t n, F f) {
  const int64_t vectors = n / V;
  each_early(rows * vectors, [=] __device__(int64_t i) {
    int64_t column = i;
    const int64_t row = divide(column, vectors);
    f(row, column * V);
  });
}

template <class T, int V>
void swiglu_as(const PitchedRows<T>& y, const PitchedRows<T>& gate, const PitchedRows<T>& up, int64_t rows) {
  using A = Acc<T>;
  const int64_t n = y.width;
  each_place<V>(rows, n, [=] __device__(int64_t row, int64_t j) {
    const auto g = load<true, V>(gate.data + row * gate.pitch + j, V);
    const auto u = load<true, V>(up.data + row * up.pitch + j, V);
    Vector<T, V> out;
#pragma unroll
    for (int e = 0; e < V; ++e) out.v[e] = static_cast<T>(A(g.v[e]) * sigmoid_for<T>(A(g.v[e])) * A(u.v[e]));
    store<true, V>(y.data + row * y.pitch + j, out, V);
  });
}

template <class T, int V>
void swiglu_backward_as(const PitchedRows<T>& dgate, const PitchedRows<T>& dup, const PitchedRows<T>& gate,
                        const PitchedRows<T>& up, const PitchedRows<T>& dy, int64_t rows) {
  using A = Acc<T>;
  const int64_t n = dy.width;
  each_place<V>(rows, n, [=] __device__(int64_t row, int64_t j) {
    const auto g = load<true, V>(gate.data + row * gate.pitch + j, V);
    const auto u = load<true, V>(up.data + row * up.pitch + j, V);
    const auto d = load<true, V>(dy.data + row * dy.pitch + j, V);
    Vector<T, V> to_gate, to_up;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const A x = A(g.v[e]), s = sigmoid_for<T>(x), h = A(d.v[e]);
      to_gate.v[e] = static_cast<T>(h * A(u.v[e]) * s * (A(1) + x * (A(1) - s)));
      to_up.v[e] = static_cast<T>(h * x * s);
    }
    store<true, V>(dgate.data + row * dgate.pitch + j, to_gate, V);
    store<true, V>(dup.data + row * dup.pitch + j, to_up, V);
  });
}

}  // namespace

void swiglu_forward(const Tensor& y, const Tensor& gate, const Tensor& up) {
  with_float(y.dtype(), [&]<class T>() {
    const PitchedRows<T> to(y), g(gate), u(up);
    if (to.whole() && g.whole() && u.whole())
      swiglu_as<T, Pack<T>::kSize>(to, g, u, y.dim(0));
    else
      swiglu_as<T, 1>(to, g, u, y.dim(0));
  });
}

void swiglu_backward(const Tensor& dgate, const Tensor& dup, const Tensor& gate, const Tensor& up,
                     const Tensor& dy) {
  with_float(dy.dtype(), [&]<class T>() {
    const PitchedRows<T> dg(dgate), du(dup), g(gate), u(up), d(dy);
    if (dg.whole() && du.whole() && g.whole() && u.whole() && d.whole())
      swiglu_backward_as<T, Pack<T>::kSize>(dg, du, g, u, d, dy.dim(0));
    else
      swiglu_backward_as<T, 1>(dg, du, g, u, d, dy.dim(0));
  });
}

}  // namespace weft::cuda
