#include "autograd/ops/layer_norm.h"

#include "autograd/cuda/rows.cuh"
#include "autograd/ops/rows.h"

namespace weft::cuda {
namespace {

// On the way back two sums a column stay in registers beside the row, so fewer columns fit.
constexpr int kHold = 4, kBackwardHold = 2, kMostThreads = 512;

// gain or bias at V columns, `otherwise` where there is none.
template <bool whole, int V, class A>
__device__ Vector<A, V> load_or(const A* from, int j, int n, A otherwise) {
  if (from != nullptr) return load<whole, V>(from + j, n - j);
  Vector<A, V> x;
#pragma unroll
  for (int e = 0; e < V; ++e) x.v[e] = otherwise;
  return x;
}

template <class T, int kHeld, bool whole>
__global__ void __launch_bounds__(kMostThreads)
    layer_norm_kernel(PitchedRows<T> y, Acc<T>* statistics, PitchedRows<T> x, const Acc<T>* gain,
                      const Acc<T>* bias, int64_t rows, int n, int lanes, Acc<T> eps) {
  using A = Acc<T>;
  constexpr int V = Pack<T>::kSize;
  const Group group(lanes);
  const int64_t row = int64_t{blockIdx.x} * group.groups() + group.index;
  const int width = row < rows ? n : 0;
  const HeldRow<T, kHeld, whole> a(x[row], width, group);
  A sum = 0;
  each_vector<kHeld, V>(width, group, [&](int k, int j) {
    const auto v = a.at(k, j);
#pragma unroll
    for (int e = 0; e < V; ++e) sum += A(v.v[e]);
  });
  const A mean = group.sum(sum) / static_cast<A>(n);
  A squares = 0;
  each_vector<kHeld, V>(width, group, [&](int k, int j) {
    const auto v = a.at(k, j);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const A from_mean = A(v.v[e]) - mean;
      if (whole || j + e < width) squares += from_mean * from_mean;
    }
  });
  const A r = A(1) / std::sqrt(group.sum(squares) / static_cast<A>(n) + eps);
  if (row < rows && group.lane == 0) {
    statistics[2 * row] = mean;
    statistics[2 * row + 1] = r;
  }
  T* to = y[row];
  each_vector<kHeld, V>(width, group, [&](int k, int j) {
    const auto v = a.at(k, j);
    const auto g = load_or<whole, V>(gain, j, width, A(1)), shift = load_or<whole, V>(bias, j, width, A(0));
    Vector<T, V> out;
#pragma unroll
    for (int e = 0; e < V; ++e) out.v[e] = static_cast<T>((A(v.v[e]) - mean) * r * g.v[e] + shift.v[e]);
    store<whole, V>(to + j, out, width - j);
  });
}

// A block takes `block_rows` rows, its groups one each at a time, and leaves its own row of both sums.
template <class T, int kHeld, bool whole>
__global__ void __launch_bounds__(kMostThreads)
    layer_norm_backward_kernel(PitchedRows<T> dx, Acc<T>* dgain, Acc<T>* dbias, PitchedRows<T> x,
                               const Acc<T>* statistics, const Acc<T>* gain, PitchedRows<T> dy, int64_t rows,
                               int n, int lanes, int64_t block_rows) {
  using A = Acc<T>;
  constexpr int V = Pack<T>::kSize;
  extern __shared__ __align__(16) unsigned char shared[];
  const Group group(lanes);
  const int64_t groups = group.groups();
  const int64_t begin = int64_t{blockIdx.x} * block_rows, end = min(rows, begin + block_rows);
  A *gain_total = dgain + int64_t{blockIdx.x} * n, *bias_total = dbias + int64_t{blockIdx.x} * n;
  A gain_sum[kHeld > 0 ? kHeld : 1][V] = {}, bias_sum[kHeld > 0 ? kHeld : 1][V] = {};
  const A per = A(1) / static_cast<A>(n);
  for (int64_t first = begin; first < end; first += groups) {
    const int64_t row = first + group.index, at = min(row, end - 1);
    const int width = row < end ? n : 0;
    const HeldRow<T, kHeld, whole> a(x[at], width, group), d(dy[at], width, group);
    const A mean = statistics[2 * at], r = statistics[2 * at + 1];
    // With h = (x - mean) r and e = dy gain:  dx = r (e - mean(e) - h mean(e h)).
    A sum_e = 0, sum_eh = 0;
    each_vector<kHeld, V>(width, group, [&](int k, int j) {
      const auto va = a.at(k, j), vd = d.at(k, j);
      const auto g = load_or<whole, V>(gain, j, width, A(1));
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const A scaled = A(vd.v[e]) * g.v[e];  // 0 past the end of the row
        sum_e += scaled;
        sum_eh += scaled * (A(va.v[e]) - mean);
      }
    });
    const A mean_e = per * group.sum(sum_e), mean_eh = per * r * group.sum(sum_eh);
    T* to = dx[at];
    each_vector<kHeld, V>(width, group, [&](int k, int j) {
      const auto va = a.at(k, j), vd = d.at(k, j);
      const auto g = load_or<whole, V>(gain, j, width, A(1));
      Vector<T, V> out;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const A h = (A(va.v[e]) - mean) * r, q = A(vd.v[e]);
        if constexpr (kHeld > 0) {
          gain_sum[k][e] += q * h;
          bias_sum[k][e] += q;
        } else if (j + e < width) {
          gain_total[j + e] += q * h;
          bias_total[j + e] += q;
        }
        out.v[e] = static_cast<T>(r * (q * g.v[e] - mean_e - h * mean_eh));
      }
      store<whole, V>(to + j, out, width - j);
    });
  }
  if constexpr (kHeld > 0) {
    fold_groups<kHeld, V, whole>(gain_total, gain_sum, n, group, reinterpret_cast<A*>(shared));
    fold_groups<kHeld, V, whole>(bias_total, bias_sum, n, group, reinterpret_cast<A*>(shared));
  }
}

template <class T>
const Acc<T>* data_or_null(const Tensor& x) {
  return x.defined() ? data<const Acc<T>>(x) : nullptr;
}

}  // namespace

void layer_norm_forward(const Tensor& y, const Tensor& statistics, const Tensor& x, const Tensor& gain,
                        const Tensor& bias, double eps) {
  const int64_t n = x.dim(-1), rows = row_count(x);
  if (rows == 0) return;
  with_float(x.dtype(), [&]<class T>() {
    const PitchedRows<T> to(y), from(x);
    const Acc<T>*g = data_or_null<T>(gain), *shift = data_or_null<T>(bias);
    const RowPlan plan = plan_rows<T>(n, kHold, kMostThreads);
    const bool whole_rows = to.whole() && from.whole() && aligned(g) && aligned(shift);
    with_plan<kHold>(plan, whole_rows, [&]<int kHeld, bool whole>() {
      layer_norm_kernel<T, kHeld, whole><<<plan.blocks(rows), plan.threads, 0, stream()>>>(
          to, data<Acc<T>>(statistics), from, g, shift, rows, static_cast<int>(n), plan.lanes,
          static_cast<Acc<T>>(eps));
    });
  });
  check_launch("layer_norm_forward");
}

void layer_norm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& dbias, const Tensor& x,
                         const Tensor& statistics, const Tensor& gain, const Tensor& dy) {
  const int64_t n = x.dim(-1), rows = row_count(x);
  if (rows == 0) return;
  const RowBlocks blocks = layer_norm_blocks(rows);
  with_float(x.dtype(), [&]<class T>() {
    const PitchedRows<T> to(dx), from(x), gradient(dy);
    const Acc<T>* g = data_or_null<T>(gain);
    const RowPlan plan = plan_rows<T>(n, kBackwardHold, kMostThreads, kMostThreads);
    if (plan.held == 0) {  // such sums live in memory
      dgain.zero();
      dbias.zero();
    }
    const bool whole_rows = to.whole() && from.whole() && gradient.whole() && aligned(g);
    with_plan<kBackwardHold>(plan, whole_rows, [&]<int kHeld, bool whole>() {
      layer_norm_backward_kernel<T, kHeld, whole>
          <<<static_cast<unsigned>(blocks.count), kMostThreads, fold_bytes<Acc<T>>(plan, n), stream()>>>(
              to, data<Acc<T>>(dgain), data<Acc<T>>(dbias), from, data<const Acc<T>>(statistics), g, gradient,
              rows, static_cast<int>(n), plan.lanes, blocks.size);
    });
  });
  check_launch("layer_norm_backward");
}

}  // namespace weft::cuda
