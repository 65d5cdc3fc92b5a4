#include "autograd/ops/gated_rms_norm.h"

#include "autograd/cuda/early.cuh"
#include "autograd/cuda/rounded_math.cuh"
#include "autograd/ops/rows.h"

namespace weft::cuda {
namespace {

// A group of threads has a row and holds it with its gate, and on the way back with the gradient.
constexpr int kHold = 4, kMostLanes = 64;  // lanes that are a constant

constexpr int most_threads(int lanes) { return lanes > 0 ? kThreads : kMostRowThreads; }

template <class T, int kHeld, bool whole, int kLanes>
__global__ void __launch_bounds__(most_threads(kLanes), kLanes > 0 ? 4 : 1)
    forward_kernel(PitchedRows<T> y, Acc<T>* rstd, PitchedRows<T> x, PitchedRows<T> gate, int64_t rows, int n,
                   int lanes, Acc<T> eps) {
  using A = Acc<T>;
  constexpr int V = Pack<T>::kSize;
  const GroupOf<kLanes> group(lanes);
  const int64_t row = int64_t{blockIdx.x} * group.groups() + group.index;
  const int width = row < rows ? n : 0;  // the last block's spare groups only keep step
  wait_for_earlier();
  HeldRow<T, kHeld, whole> a(x[row], width, group), u(gate[row], width, group);
  A squares = 0;
  each_slot<kHeld, V>(width, group, [&](int k, int j) {
    const auto v = widen<T, V>(a.at(k, j));
#pragma unroll
    for (int e = 0; e < V; ++e) squares += v.v[e] * v.v[e];
  });
  const A s = A(1) / std::sqrt(group.sum(squares) / static_cast<A>(n) + eps);
  if (row < rows && group.lane == 0) rstd[row] = s;
  a.settle(), u.settle();
  T* const to = y[row];
  each_slot<kHeld, V>(width, group, [&](int k, int j) {
    auto v = widen<T, V>(a.at(k, j));
    const auto g = widen<T, V>(u.at(k, j));
#pragma unroll
    for (int e = 0; e < V; ++e) v.v[e] = v.v[e] * s * g.v[e];
    if (j < width) store<whole, V>(to + j, narrow<T, V>(v), width - j);
  });
}

template <class T, int kHeld, bool whole, int kLanes>
__global__ void __launch_bounds__(most_threads(kLanes), kLanes > 0 ? 3 : 1)
    backward_kernel(PitchedRows<T> dx, PitchedRows<T> dgate, PitchedRows<T> x, PitchedRows<T> gate,
                    const Acc<T>* rstd, PitchedRows<T> dy, int64_t rows, int n, int lanes) {
  using A = Acc<T>;
  constexpr int V = Pack<T>::kSize;
  const GroupOf<kLanes> group(lanes);
  const int64_t row = int64_t{blockIdx.x} * group.groups() + group.index;
  const int width = row < rows ? n : 0;
  wait_for_earlier();
  HeldRow<T, kHeld, whole> a(x[row], width, group), u(gate[row], width, group), d(dy[row], width, group);
  const A s = row < rows ? rstd[row] : A(0);
  // With h = x s and e = dy gate:  dx = s (e - h mean(e h)),  dgate = dy h.
  A dot = 0;
  each_slot<kHeld, V>(width, group, [&](int k, int j) {
    const auto p = widen<T, V>(a.at(k, j)), g = widen<T, V>(u.at(k, j)), q = widen<T, V>(d.at(k, j));
#pragma unroll
    for (int e = 0; e < V; ++e) dot += q.v[e] * g.v[e] * p.v[e];
  });
  const A mean = group.sum(dot) * s * s / static_cast<A>(n);
  a.settle(), u.settle(), d.settle();
  T *const to_x = dx[row], *const to_gate = dgate[row];
  each_slot<kHeld, V>(width, group, [&](int k, int j) {
    auto p = widen<T, V>(a.at(k, j)), g = widen<T, V>(u.at(k, j));
    const auto q = widen<T, V>(d.at(k, j));
#pragma unroll
    for (int e = 0; e < V; ++e) {
      g.v[e] = s * (q.v[e] * g.v[e] - p.v[e] * mean);
      p.v[e] = q.v[e] * p.v[e] * s;
    }
    if (j < width) {
      store<whole, V>(to_x + j, narrow<T, V>(g), width - j);
      store<whole, V>(to_gate + j, narrow<T, V>(p), width - j);
    }
  });
}

template <class T>
void forward_as(const Tensor& y, const Tensor& rstd, const Tensor& x, const Tensor& gate, double eps) {
  const int64_t n = x.dim(-1), rows = row_count(x);
  const PitchedRows<T> to(y), from(x), gates(gate);
  const RowPlan plan = plan_rows<T>(n, kHold, kMostRowThreads);
  const bool whole_rows = to.whole() && from.whole() && gates.whole();
  with_row_constants<T, kHold, kMostLanes>(plan, n, whole_rows, [&]<int kHeld, bool whole, int kLanes>() {
    launch_early(forward_kernel<T, kHeld, whole, kLanes>, plan.blocks(rows), plan.threads, 0, to,
                 data<Acc<T>>(rstd), from, gates, rows, static_cast<int>(n), plan.lanes,
                 static_cast<Acc<T>>(eps));
  });
}

template <class T>
void backward_as(const Tensor& dx, const Tensor& dgate, const Tensor& x, const Tensor& gate,
                 const Tensor& rstd, const Tensor& dy) {
  const int64_t n = x.dim(-1), rows = row_count(x);
  const PitchedRows<T> to_x(dx), to_gate(dgate), from(x), gates(gate), gradient(dy);
  const RowPlan plan = plan_rows<T>(n, kHold, kMostRowThreads);
  const bool whole_rows =
      to_x.whole() && to_gate.whole() && from.whole() && gates.whole() && gradient.whole();
  with_row_constants<T, kHold, kMostLanes>(plan, n, whole_rows, [&]<int kHeld, bool whole, int kLanes>() {
    launch_early(backward_kernel<T, kHeld, whole, kLanes>, plan.blocks(rows), plan.threads, 0, to_x, to_gate,
                 from, gates, data<const Acc<T>>(rstd), gradient, rows, static_cast<int>(n), plan.lanes);
  });
}

}  // namespace

void gated_rms_norm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x, const Tensor& gate,
                            double eps) {
  if (row_count(x) == 0) return;
  with_float(x.dtype(), [&]<class T>() { forward_as<T>(y, rstd, x, gate, eps); });
  check_launch("gated_rms_norm_forward");
}

void gated_rms_norm_backward(const Tensor& dx, const Tensor& dgate, const Tensor& x, const Tensor& gate,
                             const Tensor& rstd, const Tensor& dy) {
  if (row_count(x) == 0) return;
  with_float(x.dtype(), [&]<class T>() { backward_as<T>(dx, dgate, x, gate, rstd, dy); });
  check_launch("gated_rms_norm_backward");
}

}  // namespace weft::cuda
