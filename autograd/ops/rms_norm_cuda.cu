#include "autograd/ops/rms_norm.h"

#include "autograd/cuda/early.cuh"
#include "autograd/cuda/rounded_math.cuh"
#include "autograd/cuda/rows_ahead.cuh"
#include "autograd/ops/add_rms_norm.h"
#include "autograd/ops/rows.h"

namespace weft::cuda {
namespace {

// On the way back a sum stays in registers beside the row and its gain, so fewer columns fit.
constexpr int kHold = 4, kHoldBack = 3, kMostThreads = kMostRowThreads;

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

// gain, ones where there is none, at the columns of a thread: if kHeld > 0, read once into registers.
template <class T, int kHeld, bool whole>
class Gain {
 public:
  static constexpr int V = Pack<T>::kSize;
  using A = Acc<T>;
  template <class G>
  __device__ Gain(const A* gain, int n, const G& group) : gain_(gain), n_(n) {
    if constexpr (kHeld > 0) each_slot<kHeld, V>(n, group, [&](int k, int j) { held_[k] = read(j); });
  }
  __device__ Vector<A, V> at(int k, int j) const {
    if constexpr (kHeld > 0)
      return held_[k];
    else
      return read(j);
  }

 private:
  __device__ Vector<A, V> read(int j) const {
    if (gain_ != nullptr && j < n_) return load<whole, V>(gain_ + j, n_ - j);
    Vector<A, V> x;
#pragma unroll
    for (int e = 0; e < V; ++e) x.v[e] = A(1);
    return x;
  }
  const A* gain_;
  int n_;
  Vector<A, V> held_[kHeld > 0 ? kHeld : 1];
};

// y and rstd of x, or, if kSum, of x + branch, which is left in sum. With up to three vectors a thread there
// is room for four blocks anyway; asked for them, the compiler reads the gain before it waits for the row.
template <class T, int kHeld, bool whole, int kLanes, bool kSum>
__global__ void __launch_bounds__(kLanes > 0 ? kThreads : kMostThreads, kLanes == 0          ? 1
                                                                        : kSum || kHeld <= 3 ? 4
                                                                                             : 3)
    rms_norm_kernel(PitchedRows<T> y, Acc<T>* rstd, MaybeRows<T> sum, PitchedRows<T> x, MaybeRows<T> branch,
                    const Acc<T>* gain, int64_t rows, int n, int lanes, Acc<T> eps) {
  using A = Acc<T>;
  constexpr int V = Pack<T>::kSize;
  const GroupOf<kLanes> group(lanes);
  const int64_t row = int64_t{blockIdx.x} * group.groups() + group.index;
  const int width = row < rows ? n : 0;  // the last block's spare groups only keep step
  wait_for_earlier();
  HeldRow<T, kHeld, whole> a(x[row], width, group), b(branch[row], kSum ? width : 0, group);
  const Gain<T, kSum ? 0 : kHeld, whole> factors(gain, width, group);
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
  each_slot<kHeld, V>(width, group, [&](int k, int j) {
    const auto v = value(k, j);
    if constexpr (kSum)
      if (j < width) store<whole, V>(sum[row] + j, narrow<T, V>(v), width - j);
#pragma unroll
    for (int e = 0; e < V; ++e) squares += v.v[e] * v.v[e];
  });
  const A s = A(1) / std::sqrt(group.sum(squares) / static_cast<A>(n) + eps);
  if (row < rows && group.lane == 0) rstd[row] = s;
  a.settle(), b.settle();
  T* to = y[row];
  each_slot<kHeld, V>(width, group, [&](int k, int j) {
    auto v = value(k, j);
    const auto g = factors.at(k, j);
#pragma unroll
    for (int e = 0; e < V; ++e) v.v[e] = v.v[e] * s * g.v[e];
    if (j < width) store<whole, V>(to + j, narrow<T, V>(v), width - j);
  });
}

// The sum of two roundings, as the op of sums has it: the compiler must not make one of them.
__device__ inline float plus(float a, float b) { return __fadd_rn(a, b); }
__device__ inline double plus(double a, double b) { return __dadd_rn(a, b); }

// Two vectors a thread leave registers for the next row; three do not, and want more of them than 512 threads
// have.
template <class T, int kHeld, bool whole, bool kSum, class G>
using Ahead =
    std::conditional_t<whole && (kHeld == 1 || kHeld == 2), RowAhead<T, kHeld, whole, kSum ? 3 : 2, G>,
                       RowsAhead<T, kHeld, whole, kSum ? 3 : 2, G>>;
constexpr int kThreadsOfThree = 384, kLanesOfThree = 128;

// All groups take rows that lie side by side, and then the next so many. A block leaves its own row of dgain.
// If kSum, dsum is added to dx.
template <class T, int kHeld, bool whole, int kLanes, bool kSum>
__global__ void __launch_bounds__(kHeld == 3 && 0 < kLanes && kLanes <= kLanesOfThree ? kThreadsOfThree
                                                                                      : kMostThreads,
                                  1)
    rms_norm_backward_kernel(PitchedRows<T> dx, Acc<T>* dgain, PitchedRows<T> x, const Acc<T>* rstd,
                             const Acc<T>* gain, PitchedRows<T> dy, MaybeRows<T> dsum, int rows, int n,
                             int lanes) {
  using A = Acc<T>;
  constexpr int V = Pack<T>::kSize;
  extern __shared__ __align__(16) unsigned char shared[];
  const GroupOf<kLanes> group(lanes);
  const int begin = static_cast<int>(blockIdx.x) * group.groups();
  const int step = static_cast<int>(gridDim.x) * group.groups();
  using Rows = Ahead<T, kHeld, whole, kSum, GroupOf<kLanes>>;
  Rows from(shared, group);
  const auto width_of = [&](int r) { return r < rows ? n : 0; };  // groups without a row keep step
  const auto row_at = [&](int r) {
    return [&, r](int input) -> const T* { return input == 0 ? x[r] : input == 1 ? dy[r] : dsum[r]; };
  };
  const auto ask = [&](int r) { from.ask(row_at(r), width_of(r)); };
  for (int k = 0; k < Rows::kAhead; ++k) ask(begin + group.index + k * step);
  const Gain<T, kHeld, whole> factors(gain, n, group);
  A* total = dgain + int64_t{blockIdx.x} * n;
  A sum[kHeld > 0 ? kHeld : 1][V] = {};
  const A per = A(1) / static_cast<A>(n);
  const auto rstd_at = [&](int r) { return r < rows ? rstd[r] : A(0); };
  A next = rstd_at(begin + group.index);
  for (int first = begin; first < rows; first += step) {
    const int r = first + group.index, width = width_of(r);
    const auto row = row_at(r);
    const A s = next;
    next = rstd_at(r + step);
    from.wait();
    auto a = from.take(0, row, width), d = from.take(1, row, width),
         more = from.take(kSum ? 2 : 0, row, kSum ? width : 0);
    if constexpr (Rows::kAtOnce) ask(r + Rows::kAhead * step);
    // With h = x s and e = dy gain:  dx = s (e - h mean(e h)),  dgain = sum of dy h.
    A dot = 0;
    each_slot<kHeld, V>(width, group, [&](int k, int j) {
      const auto p = widen<T, V>(a.at(k, j)), q = widen<T, V>(d.at(k, j));
      const auto g = factors.at(k, j);
#pragma unroll
      for (int e = 0; e < V; ++e) dot += q.v[e] * g.v[e] * p.v[e];
    });
    const A mean = group.sum(dot) * (s * s * per);
    if constexpr (!Rows::kAtOnce) ask(r + Rows::kAhead * step);
    a.settle(), d.settle(), more.settle();
    T* const to = dx[r];
    each_slot<kHeld, V>(width, group, [&](int k, int j) {
      const auto p = widen<T, V>(a.at(k, j)), q = widen<T, V>(d.at(k, j));
      const auto g = factors.at(k, j);
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
      if constexpr (kSum) {
        const auto u = widen<T, V>(more.at(k, j));
#pragma unroll
        for (int e = 0; e < V; ++e) out.v[e] = plus(A(static_cast<T>(out.v[e])), u.v[e]);
      }
      if (j < width) store<whole, V>(to + j, narrow<T, V>(out), width - j);
    });
  }
  if constexpr (kHeld > 0) fold_groups<kHeld, V, whole>(total, sum, n, group, reinterpret_cast<A*>(shared));
}

template <class T>
const Acc<T>* data_or_null(const Tensor& x) {
  return x.defined() ? data<const Acc<T>>(x) : nullptr;
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
  with_row_constants<T, kHold>(plan, n, whole_rows, [&]<int kHeld, bool whole, int kLanes>() {
    launch_early(rms_norm_kernel<T, kHeld, whole, kLanes, kSum>, plan.blocks(rows), plan.threads, 0, to,
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

template <class T, bool kSum>
void backward_as(const Tensor& dx, const Tensor& dgain, const Tensor& x, const Tensor& rstd,
                 const Tensor& gain, const Tensor& dy, const Tensor& dsum) {
  using A = Acc<T>;
  const int64_t n = x.dim(-1), rows = row_count(x);
  CHECK(rows < int64_t{1} << 30, "rms_norm: ", rows, " rows");
  const PitchedRows<T> to(dx), from(x), gradient(dy);
  const MaybeRows<T> of_sum(dsum);
  const A* g = data_or_null<T>(gain);
  RowPlan plan = plan_rows<T>(n, kHoldBack, kMostThreads, kMostThreads);
  // Whichever kernel serves: the number of threads decides which rows a block adds up.
  const int64_t slot = int64_t{plan.lanes} * Pack<T>::kSize;
  if ((n + slot - 1) / slot == 3 && plan.lanes <= kLanesOfThree) plan.threads = kThreadsOfThree;
  if (plan.held == 0) dgain.zero();  // such sums live in memory
  const bool whole_rows = to.whole() && from.whole() && gradient.whole() && of_sum.whole() && aligned(g);
  with_row_constants<T, kHoldBack>(plan, n, whole_rows, [&]<int kHeld, bool whole, int kLanes>() {
    constexpr auto kernel = rms_norm_backward_kernel<T, kHeld, whole, kLanes, kSum>;
    const size_t bytes = std::max(fold_bytes<A>(plan, n), Ahead<T, kHeld, whole, kSum, Group>::bytes(plan));
    CHECK(fits_shared<kernel>(bytes), "rms_norm: rows of ", n, " are too wide for this GPU");
    kernel<<<static_cast<unsigned>(dgain.dim(0)), plan.threads, bytes, stream()>>>(
        to, data<A>(dgain), from, data<const A>(rstd), g, gradient, of_sum, static_cast<int>(rows),
        static_cast<int>(n), plan.lanes);
  });
}

void backward(const Tensor& dx, const Tensor& dgain, const Tensor& x, const Tensor& rstd, const Tensor& gain,
              const Tensor& dy, const Tensor& dsum) {
  if (row_count(x) == 0) return;
  with_float(x.dtype(), [&]<class T>() {
    if (dsum.defined())
      backward_as<T, true>(dx, dgain, x, rstd, gain, dy, dsum);
    else
      backward_as<T, false>(dx, dgain, x, rstd, gain, dy, dsum);
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
