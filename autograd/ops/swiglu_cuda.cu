#include "autograd/ops/swiglu.h"

#include "autograd/cuda/early.cuh"
#include "autograd/cuda/rounded_math.cuh"

namespace weft::cuda {
namespace {

// What the unit makes of a gate x; and with e, the gradient that arrives times the other factor, what goes
// back.
template <class T>
struct Swish {
  using A = Acc<T>;
  A x, s;
  __device__ explicit Swish(A gate) : x(gate), s(sigmoid_for<T>(gate)) {}
  __device__ A value() const { return x * s; }
  __device__ A to_gate(A e) const { return e * s * (A(1) + x * (A(1) - s)); }
  __device__ A to_up(A e) const { return e * x * s; }
};
template <class T>
struct Identity {
  using A = Acc<T>;
  A x;
  __device__ explicit Identity(A gate) : x(gate) {}
  __device__ A value() const { return x; }
  __device__ A to_gate(A e) const { return e; }
  __device__ A to_up(A e) const { return e * x; }
};

template <class Unit, class T, int V>
void forward_as(const PitchedRows<T>& y, const PitchedRows<T>& gate, const PitchedRows<T>& up, int64_t rows) {
  using A = Acc<T>;
  const int64_t n = y.width;
  each_early_vector<V>(rows, n, [=] __device__(int64_t row, int64_t j) {
    const auto g = load<true, V>(gate.data + row * gate.pitch + j, V);
    const auto u = load<true, V>(up.data + row * up.pitch + j, V);
    Vector<T, V> out;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const Unit unit(A(g.v[e]));
      out.v[e] = static_cast<T>(unit.value() * A(u.v[e]));
    }
    store<true, V>(y.data + row * y.pitch + j, out, V);
  });
}

template <class Unit, class T, int V>
void backward_as(const PitchedRows<T>& dgate, const PitchedRows<T>& dup, const PitchedRows<T>& gate,
                 const PitchedRows<T>& up, const PitchedRows<T>& dy, int64_t rows) {
  using A = Acc<T>;
  const int64_t n = dy.width;
  each_early_vector<V>(rows, n, [=] __device__(int64_t row, int64_t j) {
    const auto g = load<true, V>(gate.data + row * gate.pitch + j, V);
    const auto u = load<true, V>(up.data + row * up.pitch + j, V);
    const auto d = load<true, V>(dy.data + row * dy.pitch + j, V);
    Vector<T, V> to_gate, to_up;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const Unit unit(A(g.v[e]));
      const A h = A(d.v[e]);
      to_gate.v[e] = static_cast<T>(unit.to_gate(h * A(u.v[e])));
      to_up.v[e] = static_cast<T>(unit.to_up(h));
    }
    store<true, V>(dgate.data + row * dgate.pitch + j, to_gate, V);
    store<true, V>(dup.data + row * dup.pitch + j, to_up, V);
  });
}

template <template <class> class Unit>
void forward(const Tensor& y, const Tensor& gate, const Tensor& up) {
  with_float(y.dtype(), [&]<class T>() {
    const PitchedRows<T> to(y), g(gate), u(up);
    if (to.whole() && g.whole() && u.whole())
      forward_as<Unit<T>, T, Pack<T>::kSize>(to, g, u, y.dim(0));
    else
      forward_as<Unit<T>, T, 1>(to, g, u, y.dim(0));
  });
}

template <template <class> class Unit>
void backward(const Tensor& dgate, const Tensor& dup, const Tensor& gate, const Tensor& up,
              const Tensor& dy) {
  with_float(dy.dtype(), [&]<class T>() {
    const PitchedRows<T> dg(dgate), du(dup), g(gate), u(up), d(dy);
    if (dg.whole() && du.whole() && g.whole() && u.whole() && d.whole())
      backward_as<Unit<T>, T, Pack<T>::kSize>(dg, du, g, u, d, dy.dim(0));
    else
      backward_as<Unit<T>, T, 1>(dg, du, g, u, d, dy.dim(0));
  });
}

}  // namespace

void swiglu_forward(const Tensor& y, const Tensor& gate, const Tensor& up) { forward<Swish>(y, gate, up); }
void swiglu_backward(const Tensor& dgate, const Tensor& dup, const Tensor& gate, const Tensor& up,
                     const Tensor& dy) {
  backward<Swish>(dgate, dup, gate, up, dy);
}
void sglu_forward(const Tensor& y, const Tensor& gate, const Tensor& up) { forward<Identity>(y, gate, up); }
void sglu_backward(const Tensor& dgate, const Tensor& dup, const Tensor& gate, const Tensor& up,
                   const Tensor& dy) {
  backward<Identity>(dgate, dup, gate, up, dy);
}

}  // namespace weft::cuda
