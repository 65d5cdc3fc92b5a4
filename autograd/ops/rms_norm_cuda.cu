#include "autograd/ops/rms_norm.h"

#include "autograd/cuda/rows.cuh"
#include "autograd/ops/rows.h"

namespace weft::cuda {
namespace {

constexpr int kHold = 4, kBackwardThreads = 512;

template <class T, int kHeld, bool whole>
__global__ void __launch_bounds__(1024)
    rms_norm_kernel(PitchedRows<T> y, Acc<T>* rstd, PitchedRows<T> x, const Acc<T>* gain, int64_t rows, int n,
                    int lanes, Acc<T> eps) {
  using A = Acc<T>;
  constexpr int V = Pack<T>::kSize;
  const Group group(lanes);
  const int64_t row = int64_t{blockIdx.x} * (blockDim.x / lanes) + group.index;
  const int width = row < rows ? n : 0;  // the last block's spare groups only keep step
  const HeldRow<T, kHeld, whole> a(x[row], width, group);
  A squares = 0;
  each_vector<kHeld, V>(width, group, [&](int k, int j) {
    const auto v = a.at(k, j);
#pragma unroll
    for (int e = 0; e < V; ++e) squares += A(v.v[e]) * A(v.v[e]);
  });
  const A s = A(1) / std::sqrt(group.sum(squares) / static_cast<A>(n) + eps);
  if (row < rows && group.lane == 0) rstd[row] = s;
  T* to = y[row];
  each_vector<kHeld, V>(width, group, [&](int k, int j) {
    const auto v = a.at(k, j);
    Vector<T, V> out;
    if (gain != nullptr) {
      const auto g = load<whole, V>(gain + j, width - j);
#pragma unroll
      for (int e = 0; e < V; ++e) out.v[e] = static_cast<T>(A(v.v[e]) * s * g.v[e]);
    } else {
#pragma unroll
      for (int e = 0; e < V; ++e) out.v[e] = static_cast<T>(A(v.v[e]) * s);
    }
    store<whole, V>(to + j, out, width - j);
  });
}

// A block takes `block_rows` rows, its groups one each at a time, and leaves its own row of dgain.
template <class T, int kHeld, bool whole>
__global__ void __launch_bounds__(kBackwardThreads)
    rms_norm_backward_kernel(PitchedRows<T> dx, Acc<T>* dgain, PitchedRows<T> x, const Acc<T>* rstd,
                             const Acc<T>* gain, PitchedRows<T> dy, int64_t rows, int n, int lanes,
                             int64_t block_rows) {
  using A = Acc<T>;
  constexpr int V = Pack<T>::kSize;
  extern __shared__ __align__(16) unsigned char shared[];
  const Group group(lanes);
  const int64_t groups = blockDim.x / lanes;
  const int64_t begin = int64_t{blockIdx.x} * block_rows, end = min(rows, begin + block_rows);
  A* total = dgain + int64_t{blockIdx.x} * n;
  A sum[kHeld > 0 ? kHeld : 1][V] = {};
  for (int64_t first = begin; first < end; first += groups) {
    const int64_t row = first + group.index, at = min(row, end - 1);
    const int width = row < end ? n : 0;
    const HeldRow<T, kHeld, whole> a(x[at], width, group), d(dy[at], width, group);
    const A s = rstd[at];
    const auto factors = [&](int j) {
      Vector<A, V> g;
      if (gain != nullptr) return load<whole, V>(gain + j, width - j);
#pragma unroll
      for (int e = 0; e < V; ++e) g.v[e] = A(1);
      return g;
    };
    // With h = x s and e = dy gain:  dx = s (e - h mean(e h)),  dgain = sum of dy h.
    A dot = 0;
    each_vector<kHeld, V>(width, group, [&](int k, int j) {
      const auto va = a.at(k, j), vd = d.at(k, j);
      const auto g = factors(j);
#pragma unroll
      for (int e = 0; e < V; ++e) dot += A(vd.v[e]) * g.v[e] * A(va.v[e]);
    });
    const A mean = group.sum(dot) * s * s / static_cast<A>(n);
    T* to = dx[at];
    each_vector<kHeld, V>(width, group, [&](int k, int j) {
      const auto va = a.at(k, j), vd = d.at(k, j);
      const auto g = factors(j);
      Vector<T, V> out;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const A p = A(va.v[e]), q = A(vd.v[e]);
        if constexpr (kHeld > 0)
          sum[k][e] += q * p * s;
        else if (j + e < width)
          total[j + e] += q * p * s;
        out.v[e] = static_cast<T>(s * (q * g.v[e] - p * mean));
      }
      store<whole, V>(to + j, out, width - j);
    });
  }
  if constexpr (kHeld > 0) fold_groups<kHeld, V>(total, sum, n, group, reinterpret_cast<A*>(shared));
}

template <class T>
const Acc<T>* data_or_null(const Tensor& x) {
  return x.defined() ? data<const Acc<T>>(x) : nullptr;
}

}  // namespace

void rms_norm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x, const Tensor& gain, double eps) {
  const int64_t n = x.dim(-1), rows = row_count(x);
  if (rows == 0) return;
  with_float(x.dtype(), [&]<class T>() {
    const PitchedRows<T> to(y), from(x);
    const Acc<T>* g = data_or_null<T>(gain);
    const RowPlan plan = plan_rows<T>(n, kHold, 1024);
    with_plan<kHold>(plan, to.whole() && from.whole() && aligned(g), [&]<int kHeld, bool whole>() {
      rms_norm_kernel<T, kHeld, whole><<<plan.blocks(rows), plan.threads, 0, stream()>>>(
          to, data<Acc<T>>(rstd), from, g, rows, static_cast<int>(n), plan.lanes, static_cast<Acc<T>>(eps));
    });
  });
  check_launch("rms_norm_forward");
}

void rms_norm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& x, const Tensor& rstd,
                       const Tensor& gain, const Tensor& dy) {
  const int64_t n = x.dim(-1), rows = row_count(x);
  if (rows == 0) return;
  const RowBlocks blocks = row_blocks(rows);
  with_float(x.dtype(), [&]<class T>() {
    const PitchedRows<T> to(dx), from(x), gradient(dy);
    const Acc<T>* g = data_or_null<T>(gain);
    const RowPlan plan = plan_rows<T>(n, kHold, kBackwardThreads, kBackwardThreads);
    if (plan.held == 0) dgain.zero();  // such sums live in memory
    const bool whole_rows = to.whole() && from.whole() && gradient.whole() && aligned(g);
    with_plan<kHold>(plan, whole_rows, [&]<int kHeld, bool whole>() {
      rms_norm_backward_kernel<T, kHeld, whole>
          <<<static_cast<unsigned>(blocks.count), kBackwardThreads, fold_bytes<Acc<T>>(plan, n), stream()>>>(
              to, data<Acc<T>>(dgain), from, data<const Acc<T>>(rstd), g, gradient, rows, static_cast<int>(n),
              plan.lanes, blocks.size);
    });
  });
  check_launch("rms_norm_backward");
}

}  // namespace weft::cuda
