#include "autograd/ops/reduce.h"

#include "autograd/cuda/rows.cuh"

namespace weft::cuda {
namespace {

// From so many results on, each has a thread, or if its elements are neighbours a group of threads, to
// itself.
constexpr int64_t kMany = 1 << 14;

// y[i] = factor * the sum of row i, a group a row.
template <class T, bool whole>
__global__ void __launch_bounds__(kThreads)
    sum_rows_kernel(T* y, const T* x, int64_t rows, int n, int lanes, double factor) {
  constexpr int V = Pack<T>::kSize;
  const Group group(lanes);
  const int64_t row = int64_t{blockIdx.x} * group.groups() + group.index;
  const int width = row < rows ? n : 0;
  double sum = 0;
  each_vector<0, V>(width, group, [&](int, int j) {
    const auto v = load<whole, V>(x + row * n + j, width - j);
#pragma unroll
    for (int e = 0; e < V; ++e) sum += static_cast<double>(Acc<T>(v.v[e]));
  });
  sum = group.sum(sum);
  if (row < rows && group.lane == 0) y[row] = static_cast<T>(static_cast<Acc<T>>(factor * sum));
}

template <class T>
void sum_by_thread(const Tensor& y, const Tensor& x, double factor) {
  const int64_t n = x.dim(1), inner = x.dim(2);
  T* to = data<T>(y);
  const T* from = data<const T>(x);
  each(y.numel(), [=] __device__(int64_t i) {
    int64_t place = i;
    const int64_t outer = divide(place, inner);
    const T* a = from + outer * n * inner + place;
    double sum = 0;
    for (int64_t k = 0; k < n; ++k) sum += static_cast<double>(Acc<T>(a[k * inner]));
    to[i] = static_cast<T>(static_cast<Acc<T>>(factor * sum));
  });
}

// (outer, parts, inner) sums of x (outer, n, inner), each over `length` of its n. A block has `width` places
// of inner, and all its threads that fit: they take rows in turn and are folded as a tree.
template <class To, class T>
__global__ void __launch_bounds__(kThreads)
    sum_parts_kernel(To* y, const T* x, int64_t n, int64_t inner, int64_t tiles, int64_t parts,
                     int64_t length, double factor) {
  __shared__ double sums[kThreads];
  const int width = static_cast<int>(::min(inner, int64_t{kThreads})), height = kThreads / width;
  const int row = static_cast<int>(threadIdx.x) / width, column = static_cast<int>(threadIdx.x) - row * width;
  int64_t tile = blockIdx.x;
  int64_t part = divide(tile, tiles);
  const int64_t outer = divide(part, parts);
  const int64_t place = tile * width + column;
  double sum = 0;
  if (row < height && place < inner) {
    const T* a = x + outer * n * inner + place;
    const int64_t end = ::min(n, (part + 1) * length);
#pragma unroll 4
    for (int64_t k = part * length + row; k < end; k += height)
      sum += static_cast<double>(Acc<T>(a[k * inner]));
  }
  sums[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row < half && row + half < height) sums[threadIdx.x] += sums[threadIdx.x + half * width];
  }
  if (row == 0 && place < inner)
    y[(outer * parts + part) * inner + place] =
        static_cast<To>(static_cast<Acc<To>>(factor * sums[threadIdx.x]));
}

template <class To, class T>
void sum_by_block(To* y, const T* x, int64_t outer, int64_t n, int64_t inner, double factor) {
  const int64_t width = std::min<int64_t>(inner, kThreads), tiles = (inner + width - 1) / width;
  const int64_t rows_at_once = 8 * (kThreads / width);
  const int64_t wanted =
      std::min((n + rows_at_once - 1) / rows_at_once, 1024 / std::max<int64_t>(1, outer * tiles));
  const int64_t length = (n + std::max<int64_t>(1, wanted) - 1) / std::max<int64_t>(1, wanted);
  const int64_t parts = length == 0 ? 1 : (n + length - 1) / length;
  const auto blocks = static_cast<unsigned>(outer * parts * tiles);
  if (parts == 1) {
    sum_parts_kernel<<<blocks, kThreads, 0, stream()>>>(y, x, n, inner, tiles, parts, length, factor);
    return check_launch("reduce_sum");
  }
  const Tensor partial = empty({outer, parts, inner}, Dtype::f64, Device::cuda);
  sum_parts_kernel<<<blocks, kThreads, 0, stream()>>>(data<double>(partial), x, n, inner, tiles, parts,
                                                      length, 1.0);
  check_launch("reduce_sum");
  sum_parts_kernel<<<static_cast<unsigned>(outer * tiles), kThreads, 0, stream()>>>(
      y, data<const double>(partial), parts, inner, tiles, int64_t{1}, parts, factor);
  check_launch("reduce_sum");
}

template <class T>
void spread(const Tensor& dx, const Tensor& dy, double factor) {
  const int64_t n = dx.dim(1), inner = dx.dim(2);
  T* to = data<T>(dx);
  const T* g = data<const T>(dy);
  const auto k = static_cast<Acc<T>>(factor);
  each(dx.numel(), [=] __device__(int64_t i) {
    int64_t place = i;
    int64_t row = divide(place, inner);
    const int64_t outer = divide(row, n);
    to[i] = static_cast<T>(k * Acc<T>(g[outer * inner + place]));
  });
}

template <class A>
struct Largest {
  A value;
  int32_t at;  // -1: nothing yet
  // NaN above all, and of equals the first.
  __device__ void meet(A other, int32_t place) {
    const bool nan = other != other, own_nan = value != value;
    const bool better = at < 0 || (nan && !own_nan) || other > value;
    const bool first = place < at && ((nan && own_nan) || other == value);
    if (place >= 0 && (better || first)) {
      value = other;
      at = place;
    }
  }
};

// One warp a result.
template <class T>
__global__ void __launch_bounds__(kThreads)
    max_kernel(T* y, int32_t* index, const T* x, int64_t results, int64_t n, int64_t inner) {
  using A = Acc<T>;
  const int64_t result = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (result >= results) return;
  int64_t place = result;
  const int64_t outer = divide(place, inner);
  const T* a = x + outer * n * inner + place;
  Largest<A> best{A(0), -1};
  for (int64_t k = threadIdx.x % kWarp; k < n; k += kWarp)
    best.meet(A(a[k * inner]), static_cast<int32_t>(k));
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const A value = __shfl_xor_sync(0xffffffffu, best.value, step);
    const int32_t at = __shfl_xor_sync(0xffffffffu, best.at, step);
    best.meet(value, at);
  }
  if (threadIdx.x % kWarp == 0) {
    y[result] = static_cast<T>(best.value);
    index[result] = best.at;
  }
}

template <class T>
void max_by_thread(const Tensor& y, const Tensor& index, const Tensor& x) {
  const int64_t n = x.dim(1), inner = x.dim(2);
  T* to = data<T>(y);
  int32_t* at = data<int32_t>(index);
  const T* from = data<const T>(x);
  each(y.numel(), [=] __device__(int64_t i) {
    int64_t place = i;
    const int64_t outer = divide(place, inner);
    const T* a = from + outer * n * inner + place;
    Largest<Acc<T>> best{Acc<T>(0), -1};
    for (int64_t k = 0; k < n; ++k) best.meet(Acc<T>(a[k * inner]), static_cast<int32_t>(k));
    to[i] = static_cast<T>(best.value);
    at[i] = best.at;
  });
}

template <class T>
void scatter_max(const Tensor& dx, const Tensor& index, const Tensor& dy) {
  const int64_t n = dx.dim(1), inner = dx.dim(2);
  T* to = data<T>(dx);
  const T* g = data<const T>(dy);
  const int32_t* at = data<const int32_t>(index);
  each(dy.numel(), [=] __device__(int64_t i) {
    int64_t place = i;
    const int64_t outer = divide(place, inner);
    to[(outer * n + at[i]) * inner + place] = g[i];
  });
}

}  // namespace

void reduce_sum(const Tensor& y, const Tensor& x, double factor) {
  const int64_t outer = x.dim(0), n = x.dim(1), inner = x.dim(2);
  if (y.numel() == 0) return;
  with_float(x.dtype(), [&]<class T>() {
    T* to = data<T>(y);
    const T* from = data<const T>(x);
    if (y.numel() < kMany) return sum_by_block(to, from, outer, n, inner, factor);
    if (inner > 1) return sum_by_thread<T>(y, x, factor);
    const RowPlan plan = plan_rows<T>(n, 4, kThreads);
    const bool whole = n % Pack<T>::kSize == 0 && aligned(from);
    auto* kernel = whole ? sum_rows_kernel<T, true> : sum_rows_kernel<T, false>;
    kernel<<<plan.blocks(outer), plan.threads, 0, stream()>>>(to, from, outer, static_cast<int>(n),
                                                              plan.lanes, factor);
    check_launch("reduce_sum");
  });
}

void reduce_sum_backward(const Tensor& dx, const Tensor& dy, double factor) {
  with_float(dx.dtype(), [&]<class T>() { spread<T>(dx, dy, factor); });
}

void reduce_max(const Tensor& y, const Tensor& index, const Tensor& x) {
  if (y.numel() == 0) return;
  const int64_t n = x.dim(1), inner = x.dim(2), results = y.numel();
  with_float(x.dtype(), [&]<class T>() {
    if (inner > 1 && results >= kMany) return max_by_thread<T>(y, index, x);
    const auto blocks = static_cast<unsigned>((results + kThreads / kWarp - 1) / (kThreads / kWarp));
    max_kernel<<<blocks, kThreads, 0, stream()>>>(data<T>(y), data<int32_t>(index), data<const T>(x), results,
                                                  n, inner);
    check_launch("reduce_max");
  });
}

void reduce_max_backward(const Tensor& dx, const Tensor& index, const Tensor& dy) {
  dx.zero();
  with_float(dx.dtype(), [&]<class T>() { scatter_max<T>(dx, index, dy); });
}

}  // namespace weft::cuda
