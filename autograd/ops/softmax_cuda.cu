#include "autograd/ops/softmax.h"

#include <limits>

#include "autograd/cuda/rows.cuh"
#include "autograd/ops/rows.h"
#include "autograd/ops/vector_math.h"

namespace weft::cuda {
namespace {

constexpr int kHold = 4, kMostThreads = 1024;

// The largest element; 0 for a row of -infinity, so that a difference to it stays -infinity.
template <class A, int kHeld, bool whole, class T>
__device__ A shift_of(const HeldRow<T, kHeld, whole>& row, int n, const Group& group) {
  constexpr int V = Pack<T>::kSize;
  A largest = -std::numeric_limits<A>::infinity();
  each_vector<kHeld, V>(n, group, [&](int k, int j) {
    const auto v = row.at(k, j);
#pragma unroll
    for (int e = 0; e < V; ++e)
      if ((whole || j + e < n) && A(v.v[e]) > largest) largest = A(v.v[e]);
  });
  largest = group.max(largest);
  return largest == -std::numeric_limits<A>::infinity() ? A(0) : largest;
}

// y: a row of the softmax, or the one number log sum_j e^x_j
template <class T, int kHeld, bool whole, bool log_sum>
__global__ void __launch_bounds__(kMostThreads)
    softmax_kernel(std::conditional_t<log_sum, Acc<T>, T>* y, const T* x, int64_t rows, int n, int lanes) {
  using A = Acc<T>;
  constexpr int V = Pack<T>::kSize;
  const Group group(lanes);
  const int64_t row = int64_t{blockIdx.x} * group.groups() + group.index;
  const int width = row < rows ? n : 0;
  const HeldRow<T, kHeld, whole> a(x + row * n, width, group);
  const A m = shift_of<A>(a, width, group);
  A sum = 0;
  each_vector<kHeld, V>(width, group, [&](int k, int j) {
    const auto v = a.at(k, j);
#pragma unroll
    for (int e = 0; e < V; ++e)
      if (whole || j + e < width) sum += vector_math::exp(A(v.v[e]) - m);
  });
  sum = group.sum(sum);
  if constexpr (log_sum) {
    if (row < rows && group.lane == 0) y[row] = m + std::log(sum);
  } else {
    const A scale = sum == 0 ? A(0) : A(1) / sum;
    each_vector<kHeld, V>(width, group, [&](int k, int j) {
      const auto v = a.at(k, j);
      Vector<T, V> out;
#pragma unroll
      for (int e = 0; e < V; ++e) out.v[e] = static_cast<T>(vector_math::exp(A(v.v[e]) - m) * scale);
      store<whole, V>(y + row * n + j, out, width - j);
    });
  }
}

template <class T, int kHeld, bool whole>
__global__ void __launch_bounds__(kMostThreads)
    softmax_backward_kernel(T* dx, const T* y, const T* dy, int64_t rows, int n, int lanes) {
  using A = Acc<T>;
  constexpr int V = Pack<T>::kSize;
  const Group group(lanes);
  const int64_t row = int64_t{blockIdx.x} * group.groups() + group.index;
  const int width = row < rows ? n : 0;
  const HeldRow<T, kHeld, whole> b(y + row * n, width, group), g(dy + row * n, width, group);
  A dot = 0;
  each_vector<kHeld, V>(width, group, [&](int k, int j) {
    const auto vb = b.at(k, j), vg = g.at(k, j);
#pragma unroll
    for (int e = 0; e < V; ++e) dot += A(vb.v[e]) * A(vg.v[e]);
  });
  dot = group.sum(dot);
  each_vector<kHeld, V>(width, group, [&](int k, int j) {
    const auto vb = b.at(k, j), vg = g.at(k, j);
    Vector<T, V> out;
#pragma unroll
    for (int e = 0; e < V; ++e) out.v[e] = static_cast<T>(A(vb.v[e]) * (A(vg.v[e]) - dot));
    store<whole, V>(dx + row * n + j, out, width - j);
  });
}

template <bool log_sum>
void launch_forward(const Tensor& y, const Tensor& x) {
  const int64_t n = x.dim(-1), rows = row_count(x);
  if (rows == 0) return;
  with_float(x.dtype(), [&]<class T>() {
    auto* to = data<std::conditional_t<log_sum, Acc<T>, T>>(y);
    const T* from = data<const T>(x);
    const RowPlan plan = plan_rows<T>(n, kHold, kMostThreads);
    const bool whole_rows = n % Pack<T>::kSize == 0 && aligned(from) && (log_sum || aligned(to));
    with_plan<kHold>(plan, whole_rows, [&]<int kHeld, bool whole>() {
      softmax_kernel<T, kHeld, whole, log_sum>
          <<<plan.blocks(rows), plan.threads, 0, stream()>>>(to, from, rows, static_cast<int>(n), plan.lanes);
    });
  });
  check_launch("softmax_forward");
}

template <class T>
void log_sum_exp_backward_as(const Tensor& dx, const Tensor& x, const Tensor& y, const Tensor& dy) {
  using A = Acc<T>;
  const int64_t n = x.dim(-1);
  const T *px = data<const T>(x), *pg = data<const T>(dy);
  const A* py = data<const A>(y);
  T* pd = data<T>(dx);
  each(x.numel(), [=] __device__(int64_t i) {
    int64_t column = i;
    const int64_t row = divide(column, n);
    const A lse = py[row] == -std::numeric_limits<A>::infinity() ? A(0) : py[row];
    pd[i] = static_cast<T>(A(pg[row]) * vector_math::exp(A(px[i]) - lse));
  });
}

}  // namespace

void softmax_forward(const Tensor& y, const Tensor& x) { launch_forward<false>(y, x); }

void softmax_backward(const Tensor& dx, const Tensor& y, const Tensor& dy) {
  const int64_t n = y.dim(-1), rows = row_count(y);
  if (rows == 0) return;
  with_float(y.dtype(), [&]<class T>() {
    T* to = data<T>(dx);
    const T *b = data<const T>(y), *g = data<const T>(dy);
    const RowPlan plan = plan_rows<T>(n, kHold, kMostThreads);
    const bool whole_rows = n % Pack<T>::kSize == 0 && aligned(to) && aligned(b) && aligned(g);
    with_plan<kHold>(plan, whole_rows, [&]<int kHeld, bool whole>() {
      softmax_backward_kernel<T, kHeld, whole>
          <<<plan.blocks(rows), plan.threads, 0, stream()>>>(to, b, g, rows, static_cast<int>(n), plan.lanes);
    });
  });
  check_launch("softmax_backward");
}

void log_sum_exp_forward(const Tensor& y, const Tensor& x) { launch_forward<true>(y, x); }

void log_sum_exp_backward(const Tensor& dx, const Tensor& x, const Tensor& y, const Tensor& dy) {
  with_float(x.dtype(), [&]<class T>() { log_sum_exp_backward_as<T>(dx, x, y, dy); });
}

}  // namespace weft::cuda
