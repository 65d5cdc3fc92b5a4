#include <tuple>

#include "autograd/cuda/kernel.cuh"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/convert.h"
#include "autograd/ops/elementwise.h"

namespace weft::cuda {
namespace {

// Offsets of an output's element in the two operands.
struct Place {
  int64_t a, b;
};
__device__ Place place_of(const Walk& w, int64_t i) {
  Place at{0, 0};
  for (int d = w.rank - 1; d >= 0; --d) {
    const int64_t rest = divide(i, w.extent[d]);
    at.a += i * w.a[d];
    at.b += i * w.b[d];
    i = rest;
  }
  return at;
}

// f(i, place of i) for each element i of an output. Where rows allow it a thread takes four neighbours, to
// look for their place once.
template <class F>
void each_place(const Walk& w, int64_t n, F f) {
  constexpr int kNeighbours = 4;
  const int64_t step_a = w.a[w.rank - 1], step_b = w.b[w.rank - 1];
  if (w.extent[w.rank - 1] % kNeighbours != 0)
    return each(n, [=] __device__(int64_t i) { f(i, place_of(w, i)); });
  each(n / kNeighbours, [=] __device__(int64_t group) {
    const int64_t i = kNeighbours * group;
    const Place at = place_of(w, i);
#pragma unroll
    for (int j = 0; j < kNeighbours; ++j) f(i + j, Place{at.a + j * step_a, at.b + j * step_b});
  });
}

template <class T, class F>
void unary_forward_as(const Tensor& y, const Tensor& x) {
  map(
      y.numel(), data<T>(y), [] __device__(Acc<T> v) { return F::forward(v); }, data<const T>(x));
}

template <class T, class F>
void unary_backward_as(const Tensor& dx, const Tensor& x, const Tensor& y, const Tensor& dy) {
  map(
      dx.numel(), data<T>(dx),
      [] __device__(Acc<T> v, Acc<T> f, Acc<T> g) { return F::derivative(v, f) * g; }, data<const T>(x),
      data<const T>(y), data<const T>(dy));
}

template <class T, class F>
void binary_forward_as(const Tensor& y, const Tensor& ta, const Tensor& tb) {
  T* p = data<T>(y);
  const T *a = data<T>(ta), *b = data<T>(tb);
  const Walk w = walk_of(y.shape(), ta.shape(), tb.shape());
  if (w.together())
    return map(
        y.numel(), p, [] __device__(Acc<T> u, Acc<T> v) { return F::forward(u, v); }, a, b);
  each_place(w, y.numel(), [=] __device__(int64_t i, Place at) {
    p[i] = static_cast<T>(F::forward(Acc<T>(a[at.a]), Acc<T>(b[at.b])));
  });
}

template <class T, class F, bool first>
void binary_backward_as(const Tensor& d, const Tensor& ta, const Tensor& tb, const Tensor& dy) {
  T* p = data<T>(d);
  const T *a = data<T>(ta), *b = data<T>(tb), *g = data<T>(dy);
  const Walk w = walk_of(d.shape(), ta.shape(), tb.shape());
  const auto slope = [] __device__(Acc<T> u, Acc<T> v) {
    if constexpr (first)
      return F::derivative_a(u, v);
    else
      return F::derivative_b(u, v);
  };
  if (w.together())
    return map(
        d.numel(), p, [=] __device__(Acc<T> u, Acc<T> v, Acc<T> h) { return slope(u, v) * h; }, a, b, g);
  each_place(w, d.numel(), [=] __device__(int64_t i, Place at) {
    p[i] = static_cast<T>(slope(Acc<T>(a[at.a]), Acc<T>(b[at.b])) * Acc<T>(g[i]));
  });
}

template <class T>
void affine_as(const Tensor& y, const Tensor& x, Acc<T> alpha, Acc<T> beta) {
  map(
      y.numel(), data<T>(y), [=] __device__(Acc<T> v) { return alpha * v + beta; }, data<const T>(x));
}

constexpr int64_t kAlongX = int64_t{1} << 30;  // outputs

// One block an output: `kept` walks the output, `gone` what is summed into one of its elements, in an order
// that the sizes alone decide.
template <class T>
__global__ void sum_to_kernel(T* y, const T* x, Walk kept, Walk gone, int64_t outputs, int64_t n) {
  const int64_t at = blockIdx.y * kAlongX + blockIdx.x;
  if (at >= outputs) return;
  const int64_t from = place_of(kept, at).a;
  Acc<T> sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += Acc<T>(x[from + place_of(gone, i).a]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) y[at] = static_cast<T>(sum);
}

}  // namespace

template <class F>
void unary_forward(const Tensor& y, const Tensor& x) {
  with_float(x.dtype(), [&]<class T>() { unary_forward_as<T, F>(y, x); });
}

template <class F>
void unary_backward(const Tensor& dx, const Tensor& x, const Tensor& y, const Tensor& dy) {
  with_float(x.dtype(), [&]<class T>() { unary_backward_as<T, F>(dx, x, y, dy); });
}

template <class F>
void binary_forward(const Tensor& y, const Tensor& a, const Tensor& b) {
  with_float(y.dtype(), [&]<class T>() { binary_forward_as<T, F>(y, a, b); });
}

template <class F>
void binary_backward(const Tensor& d, const Tensor& a, const Tensor& b, const Tensor& dy, bool first) {
  with_float(d.dtype(), [&]<class T>() {
    if (first)
      binary_backward_as<T, F, true>(d, a, b, dy);
    else
      binary_backward_as<T, F, false>(d, a, b, dy);
  });
}

void affine(const Tensor& y, const Tensor& x, double alpha, double beta) {
  with_float(x.dtype(),
             [&]<class T>() { affine_as<T>(y, x, static_cast<Acc<T>>(alpha), static_cast<Acc<T>>(beta)); });
}

void sum_to(const Tensor& to, const Tensor& from) {
  if (to.numel() == 0) return;
  if (from.numel() == 0) return fill(to, 0);
  const Summation s = summation_of(to.shape(), from.shape());
  const int threads = row_threads(s.count);
  const dim3 blocks(static_cast<unsigned>(std::min(to.numel(), kAlongX)),
                    static_cast<unsigned>((to.numel() + kAlongX - 1) / kAlongX));
  with_float(to.dtype(), [&]<class T>() {
    sum_to_kernel<<<blocks, threads, 0, stream()>>>(data<T>(to), data<const T>(from), s.kept, s.gone,
                                                    to.numel(), s.count);
  });
  check_launch("sum_to");
}

namespace {
template <class... F>
constexpr auto instances(FunctionList<F...>) {
  if constexpr (requires { (F::forward(1.0f), ...); })
    return std::tuple{std::pair{&unary_forward<F>, &unary_backward<F>}...};
  else
    return std::tuple{std::pair{&binary_forward<F>, &binary_backward<F>}...};
}
}  // namespace
[[maybe_unused]] extern const auto unary_kernels = instances(UnaryFunctions{});
[[maybe_unused]] extern const auto binary_kernels = instances(BinaryFunctions{});

}  // namespace weft::cuda
