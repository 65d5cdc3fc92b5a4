#include "autograd/ops/rms_norm.h"

#include "autograd/cuda/early.cuh"
#include "autograd/cuda/rounded_math.cuh"
#include "autograd/ops/add_rms_norm.h"
#include "autograd/ops/rows.h"

namespace weft::cuda {
namespace {

constexpr int kHold = 4, kHoldBack = 3, kMostThreads = 512;

// Rows of what may be absent: data null.
template <class T>
struct MaybeRows {
  T* data = nullptr;
  int64_t pitch = 0;
  explicit MaybeRows(const Tensor& x) {
    if (x.defined()) data = cuda::data<T>(x), pitch = x.dim(-1);  // dense
  }
  __device__ bool there() const { return data != nullptr; }
  __device__ T* operator[](int64_t r) const { return data + r * pitch; }
  bool whole() const { return aligned(data); }  // beside x, whose rows are as wide
};

// y and rstd of x, or, if kSum, of x + branch, which is left in sum.
template <class T, int kHeld, bool whole, bool kSum>
__global__ void __launch_bounds__(kMostThreads)
    rms_norm_kernel(PitchedRows<T> y, Acc<T>* rstd, MaybeRows<T> sum, PitchedRows<T> x, MaybeRows<T> branch,
                    const Acc<T>* gain, int64_t rows, int n, int lanes, Acc<T> eps) {
  using A = Acc<T>;
  constexpr int V = Pack<T>::kSize;
  const Group group(lanes);
  const int64_t row = int64_t{blockIdx.x} * (blockDim.x / lanes) + group.index;
  const int width = row < rows ? n : 0;  // the last block's spare groups only keep step
  wait_for_earlier();
  const HeldRow<T, kHeld, whole> a(x[row], width, group), b(branch[row], kSum ? width : 0, group);
  const auto value = [&](int k, int j) {
    auto v = widen<T, V>(a.at(k, j));
    if constexpr (kSum) {
      const auto u = widen<T, V>(b.at(k, j));
#pragma unroll
      for (int e = 0; e < V; ++e) v.v[e] = A(static_cast<T>(v.v[e] + u.v[e]));
    }
    return v;
  };
  A squares = 0;
  each_vector<kHeld, V>(width, group, [&](int k, int j) {
    const auto v = value(k, j);
    if constexpr (kSum) store<whole, V>(sum[row] + j, narrow<T, V>(v), width - j);
#pragma unroll
    for (int e = 0; e < V; ++e) squares += v.v[e] * v.v[e];
  });
  const A s = A(1) / std::sqrt(group.sum(squares) / static_cast<A>(n) + eps);
  if (row < rows && group.lane == 0) rstd[row] = s;
  T* to = y[row];
  each_vector<kHeld, V>(width, group, [&](int k, int j) {
    auto v = value(k, j);
    if (gain != nullptr) {
      const auto g = load<whole, V>(gain + j, width - j);
#pragma unroll
      for (int e = 0; e < V; ++e) v.v[e] = v.v[e] * s * g.v[e];
    } else {
#pragma unroll
      for (int e = 0; e < V; ++e) v.v[e] *= s;
    }
    store<whole, V>(to + j, narrow<T, V>(v), width - j);
  });
}

// The sum of two roundings, as the op of sums has it: the compiler must not make one of them.
__device__ inline float plus(float a, float b) { return __fadd_rn(a, b); }
__device__ inline double plus(double a, double b) { return __dadd_rn(a, b); }

// A block takes `block_rows` rows, its groups one each at a time, and leaves its own row of dgain. dsum, if
// there, is added to dx.
template <class T, int kHeld, bool whole>
__global__ void __launch_bounds__(kThreads, 2)
    rms_norm_backward_kernel(PitchedRows<T> dx, Acc<T>* dgain, PitchedRows<T> x, const Acc<T>* rstd,
                             const Acc<T>* gain, PitchedRows<T> dy, MaybeRows<T> dsum, int64_t rows, int n,
                             int lanes, int64_t block_rows) {
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
    const HeldRow<T, kHeld, whole> a(x[at], width, group), d(dy[at], width, group),
        more(dsum[at], dsum.there() ? width : 0, group);
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
      const auto p = widen<T, V>(a.at(k, j)), q = widen<T, V>(d.at(k, j));
      const auto g = factors(j);
#pragma unroll
      for (int e = 0; e < V; ++e) dot += q.v[e] * g.v[e] * p.v[e];
    });
    const A mean = group.sum(dot) * s * s / static_cast<A>(n);
    T* to = dx[at];
    each_vector<kHeld, V>(width, group, [&](int k, int j) {
      const auto p = widen<T, V>(a.at(k, j)), q = widen<T, V>(d.at(k, j));
      const auto g = factors(j);
      Vector<A, V> out;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const A part = q.v[e] * p.v[e] * s;
        if constexpr (kHeld > 0)
          sum[k][e] += part;
        else if (j + e < width)
          total[j + e] += part;
        out.v[e] = s * (q.v[e] * g.v[e] - p.v[e] * mean);
      }
      if (dsum.there()) {
        const auto u = widen<T, V>(more.at(k, j));
#pragma unroll
        for (int e = 0; e < V; ++e) out.v[e] = plus(A(static_cast<T>(out.v[e])), u.v[e]);
      }
      store<whole, V>(to + j, narrow<T, V>(out), width - j);
    });
  }
  if constexpr (kHeld > 0) fold_groups<kHeld, V>(total, sum, n, group, reinterpret_cast<A*>(shared));
}

template <class T>
const Acc<T>* data_or_null(const Tensor& x) {
  return x.defined() ? data<const Acc<T>>(x) : nullptr;
}

// As with_plan, with one more size for bf16.
template <class T, int kMost, class F>
void with_norm_plan(const RowPlan& plan, int64_t n, bool whole, F f) {
  if constexpr (std::is_same_v<T, bf16>)
    if (whole && plan.held == kMost && n <= int64_t{2} * plan.lanes * Pack<T>::kSize)
      return f.template operator()<2, true>();
  with_plan<kMost>(plan, whole, f);
}

template <class T, bool kSum>
void forward_as(const Tensor& y, const Tensor& rstd, const Tensor& sum, const Tensor& x, const Tensor& branch,
                const Tensor& gain, double eps) {
  const int64_t n = x.dim(-1), rows = row_count(x);
  const PitchedRows<T> to(y), from(x);
  const MaybeRows<T> of_sum(sum), of_branch(branch);
  const Acc<T>* g = data_or_null<T>(gain);
  const RowPlan plan = plan_rows<T>(n, kHold, kMostThreads);
  const bool whole_rows = to.whole() && from.whole() && of_sum.whole() && of_branch.whole() && aligned(g);
  with_norm_plan<T, kHold>(plan, n, whole_rows, [&]<int kHeld, bool whole>() {
    launch_early(rms_norm_kernel<T, kHeld, whole, kSum>, plan.blocks(rows), plan.threads, 0, to,
                 data<Acc<T>>(rstd), of_sum, from, of_branch, g, rows, static_cast<int>(n), plan.lanes,
                 static_cast<Acc<T>>(eps));
  });
}

void forward(const Tensor& y, const Tensor& rstd, const Tensor& sum, const Tensor& x, const Tensor& branch,
             const Tensor& gain, double eps) {
  if (row_count(x) == 0) return;
  with_float(x.dtype(), [&]<class T>() {
    if (branch.defined())
      forward_as<T, true>(y, rstd, sum, x, branch, gain, eps);
    else
      forward_as<T, false>(y, rstd, sum, x, branch, gain, eps);
  });
  check_launch("rms_norm_forward");
}

void backward(const Tensor& dx, const Tensor& dgain, const Tensor& x, const Tensor& rstd, const Tensor& gain,
              const Tensor& dy, const Tensor& dsum) {
  const int64_t n = x.dim(-1), rows = row_count(x);
  if (rows == 0) return;
  const RowBlocks blocks = norm_blocks(rows);
  with_float(x.dtype(), [&]<class T>() {
    const PitchedRows<T> to(dx), from(x), gradient(dy);
    const MaybeRows<T> of_sum(dsum);
    const Acc<T>* g = data_or_null<T>(gain);
    const RowPlan plan = plan_rows<T>(n, kHoldBack, kThreads, kThreads);
    if (plan.held == 0) dgain.zero();  // such sums live in memory
    const bool whole_rows = to.whole() && from.whole() && gradient.whole() && of_sum.whole() && aligned(g);
    with_norm_plan<T, kHoldBack>(plan, n, whole_rows, [&]<int kHeld, bool whole>() {
      rms_norm_backward_kernel<T, kHeld, whole>
          <<<static_cast<unsigned>(blocks.count), kThreads, fold_bytes<Acc<T>>(plan, n), stream()>>>(
              to, data<Acc<T>>(dgain), from, data<const Acc<T>>(rstd), g, gradient, of_sum, rows,
              static_cast<int>(n), plan.lanes, blocks.size);
    });
  });
  check_launch("rms_norm_backward");
}

}  // namespace

void rms_norm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x, const Tensor& gain, double eps) {
  forward(y, rstd, {}, x, {}, gain, eps);
}
void add_rms_norm_forward(const Tensor& sum, const Tensor& y, const Tensor& rstd, const Tensor& x,
                          const Tensor& branch, const Tensor& gain, double eps) {
  forward(y, rstd, sum, x, branch, gain, eps);
}

void rms_norm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& x, const Tensor& rstd,
                       const Tensor& gain, const Tensor& dy) {
  backward(dx, dgain, x, rstd, gain, dy, {});
}
void add_rms_norm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& sum, const Tensor& rstd,
                           const Tensor& gain, const Tensor& dsum, const Tensor& dy) {
  backward(dx, dgain, sum, rstd, gain, dy, dsum);
}

}  // namespace weft::cuda
