#include "autograd/ops/gates.h"

#include <tuple>

#include "autograd/cuda/early.cuh"
#include "autograd/cuda/rounded_math.cuh"

namespace weft::cuda {
namespace {

// Of a tensor (N, ...) whose leading rows are `pitch` apart.
template <class T>
struct LeadingRows {
  T* data;
  int64_t pitch;
  explicit LeadingRows(const Tensor& x) : data(cuda::data<T>(x)), pitch(x.pitch()) {}
  template <int V>
  bool whole() const {
    return aligned(data) && pitch % V == 0;
  }
};

// log(1 + e^x) of a bf16, within 2e-6 of itself.
__device__ inline float softplus_of_bf16(float x) {
  const float e = power_of_two(-kLog2E * fabsf(x));
  // Near 1 the GPU's logarithm has few digits of what is left; the series has them.
  const float series =
      e * (1 + e * (-1 / 2.0f + e * (1 / 3.0f + e * (-1 / 4.0f + e * (1 / 5.0f + e * (-1 / 6.0f))))));
  return fmaxf(x, 0) + (e < 0.125f ? series : __logf(1 + e));
}

// F for what is read as T: of bf16 by the GPU's own instructions, whose error its rounding hides.
template <class F, class T>
__device__ Acc<T> value_of(Acc<T> x) {
  if constexpr (!std::is_same_v<T, bf16>)
    return F::forward(x);
  else if constexpr (std::is_same_v<F, LogSigmoid>)
    return -softplus_of_bf16(-x);
  else if constexpr (std::is_same_v<F, Softplus>)
    return softplus_of_bf16(x);
  else if constexpr (std::is_same_v<F, Sigmoid>)
    return sigmoid_for<T>(x);
  else
    return x * sigmoid_for<T>(x);
}
template <class F, class T>
__device__ Acc<T> slope_of(Acc<T> x) {
  using A = Acc<T>;
  if constexpr (!std::is_same_v<T, bf16>) {
    return F::derivative(x, F::forward(x));
  } else {
    const A s = sigmoid_for<T>(std::is_same_v<F, LogSigmoid> ? -x : x);
    if constexpr (std::is_same_v<F, Sigmoid>)
      return s * (A(1) - s);
    else if constexpr (std::is_same_v<F, Silu>)
      return s * (A(1) + x * (A(1) - s));
    else
      return s;
  }
}

template <class F, class X, class Y, int V>
void forward_as(LeadingRows<Y> y, LeadingRows<X> x, int64_t rows, int64_t width, Acc<X> factor) {
  each_early_vector<V>(rows, width, [=] __device__(int64_t row, int64_t j) {
    auto v = widen<X, V>(load<true, V>(x.data + row * x.pitch + j, V));
#pragma unroll
    for (int e = 0; e < V; ++e) v.v[e] = factor * value_of<F, X>(v.v[e]);
    store<true, V>(y.data + row * y.pitch + j, narrow<Y, V>(v), V);
  });
}

template <class F, class X, class Y, int V>
void backward_as(LeadingRows<X> dx, LeadingRows<X> x, LeadingRows<Y> dy, int64_t rows, int64_t width,
                 Acc<X> factor) {
  each_early_vector<V>(rows, width, [=] __device__(int64_t row, int64_t j) {
    auto v = widen<X, V>(load<true, V>(x.data + row * x.pitch + j, V));
    const auto d = widen<Y, V>(load<true, V>(dy.data + row * dy.pitch + j, V));
#pragma unroll
    for (int e = 0; e < V; ++e) v.v[e] = factor * d.v[e] * slope_of<F, X>(v.v[e]);
    store<true, V>(dx.data + row * dx.pitch + j, narrow<X, V>(v), V);
  });
}

// f.operator()<X, Y, V>() for x's type, y's, and vectors of 16 bytes of the larger.
template <class F>
void with_types(const Tensor& x, const Tensor& y, F f) {
  with_float(x.dtype(), [&]<class X>() {
    if (x.dtype() == y.dtype())
      f.template operator()<X, X, Pack<X>::kSize>();
    else
      f.template operator()<X, Acc<X>, Pack<Acc<X>>::kSize>();
  });
}

}  // namespace

template <class F>
void gate_forward(const Tensor& y, const Tensor& x, double factor) {
  const int64_t rows = x.dim(0), width = x.row_size();
  with_types(x, y, [&]<class X, class Y, int V>() {
    const LeadingRows<X> from(x);
    const LeadingRows<Y> to(y);
    const auto scale = static_cast<Acc<X>>(factor);
    if (width % V == 0 && from.template whole<V>() && to.template whole<V>())
      forward_as<F, X, Y, V>(to, from, rows, width, scale);
    else
      forward_as<F, X, Y, 1>(to, from, rows, width, scale);
  });
}

template <class F>
void gate_backward(const Tensor& dx, const Tensor& x, const Tensor& dy, double factor) {
  const int64_t rows = x.dim(0), width = x.row_size();
  with_types(x, dy, [&]<class X, class Y, int V>() {
    const LeadingRows<X> from(x), to(dx);
    const LeadingRows<Y> gradient(dy);
    const auto scale = static_cast<Acc<X>>(factor);
    if (width % V == 0 && from.template whole<V>() && to.template whole<V>() && gradient.template whole<V>())
      backward_as<F, X, Y, V>(to, from, gradient, rows, width, scale);
    else
      backward_as<F, X, Y, 1>(to, from, gradient, rows, width, scale);
  });
}

namespace {
template <class... F>
constexpr auto instances(FunctionList<F...>) {
  return std::tuple{std::pair{&gate_forward<F>, &gate_backward<F>}...};
}
}  // namespace
[[maybe_unused]] extern const auto gate_kernels = instances(GateFunctions{});

}  // namespace weft::cuda
