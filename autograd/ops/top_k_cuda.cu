#include "autograd/cuda/kernel.cuh"
#include "autograd/ops/top_k.h"

namespace weft::cuda {
namespace {

template <class T>
void gather_as(const Tensor& y, const Tensor& x, const Tensor& indices) {
  const int64_t k = indices.dim(-1), m = x.dim(-1);
  T* to = data<T>(y);
  const T* from = data<T>(x);
  const int32_t* at = data<int32_t>(indices);
  each(y.numel(), [=] __device__(int64_t i) {
    int64_t rest = i;
    const int64_t row = divide(rest, k), place = at[i];
    REQUIRE_ON_DEVICE(place >= 0 && place < m);
    to[i] = from[row * m + place];
  });
}

constexpr int64_t kWindow = 1024;  // elements of dx that a block sums at once

// A warp adds 32 entries at a time to sums of its own in shared memory; of entries that name one element the
// first adds them all, in order. The warps' sums meet in order.
template <class T>
__global__ void scatter_kernel(T* dx, const int32_t* at, const T* dy, int64_t rows, int64_t k, int64_t m,
                               int64_t windows) {
  using A = Acc<T>;
  extern __shared__ double shared[];
  A* sums = reinterpret_cast<A*>(shared);
  const unsigned warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int64_t task = blockIdx.x; task < rows * windows; task += gridDim.x) {
    const int64_t row = task / windows, first = task % windows * kWindow;
    const int64_t size = m - first < kWindow ? m - first : kWindow;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < warps * size; i += blockDim.x) sums[i] = 0;
    __syncthreads();
    A* own = sums + warp * size;
    for (int64_t begin = warp * kWarp; begin < k; begin += blockDim.x) {
      const int64_t entry = begin + lane;
      const int64_t place = entry < k ? at[row * k + entry] - first : -1;
      const bool mine = place >= 0 && place < size;
      const int key = mine ? static_cast<int>(place) : -1;
      const A value = mine ? A(dy[row * k + entry]) : A(0);
      unsigned same = __match_any_sync(0xffffffffu, key);
      const unsigned leader = static_cast<unsigned>(__ffs(static_cast<int>(same))) - 1;
      A sum = value;
      // Every lane walks along as far as the longest group, since all take part in a shuffle.
      same &= same - 1;
      while (__any_sync(0xffffffffu, mine && same != 0)) {
        const unsigned next = same != 0 ? static_cast<unsigned>(__ffs(static_cast<int>(same))) - 1 : lane;
        const A other = __shfl_sync(0xffffffffu, value, static_cast<int>(next));
        if (same != 0) sum += other;
        same &= same - 1;
      }
      if (mine && leader == lane) own[place] += sum;
      __syncwarp();
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < size; i += blockDim.x) {
      A sum = 0;
      for (unsigned w = 0; w < warps; ++w) sum += sums[w * size + i];
      dx[row * m + first + i] = static_cast<T>(sum);
    }
  }
}

template <class T>
void scatter_as(const Tensor& dx, const Tensor& indices, const Tensor& dy) {
  const int64_t k = indices.dim(-1), m = dx.dim(-1), rows = dx.numel() / m;
  const int64_t windows = (m + kWindow - 1) / kWindow;
  const int warps = k >= 512 ? 4 : 1;
  const auto bytes = static_cast<size_t>(warps * std::min(m, kWindow)) * sizeof(Acc<T>);
  scatter_kernel<T><<<blocks_for(rows * windows, 1), warps* static_cast<int>(kWarp), bytes, stream()>>>(
      data<T>(dx), data<const int32_t>(indices), data<const T>(dy), rows, k, m, windows);
  check_launch("gather_last_backward");
}

// An unsigned integer that is larger where a value comes first: NaN above all, both zeros alike.
template <class A>
__device__ auto rank_key(A value) {
  if constexpr (sizeof(A) == 8) {
    if (isnan(value)) return ~uint64_t{0};
    const auto bits = static_cast<uint64_t>(__double_as_longlong(value + 0.0));
    return (bits >> 63) != 0 ? ~bits : bits | (uint64_t{1} << 63);
  } else {
    if (isnan(value)) return ~uint32_t{0};
    const uint32_t bits = __float_as_uint(value + 0.0f);
    return (bits >> 31) != 0 ? ~bits : bits | (uint32_t{1} << 31);
  }
}

// An element's place is how many of its row come before it. m comparisons an element: rows are short here,
// and no size needs another way.
template <class T>
__global__ void __launch_bounds__(kThreads)
    top_k_kernel(int32_t* indices, const T* x, int64_t rows, int64_t m, int64_t k, int64_t parts) {
  using Key = decltype(rank_key(Acc<T>(0)));
  __shared__ Key keys[kThreads];
  const int64_t threads = blockDim.x;
  for (int64_t task = blockIdx.x; task < rows * parts; task += gridDim.x) {
    const int64_t row = task / parts, i = task % parts * threads + threadIdx.x;
    const Key key = i < m ? rank_key(Acc<T>(x[row * m + i])) : Key(0);
    int64_t place = 0;
    for (int64_t first = 0; first < m; first += threads) {
      const int count = static_cast<int>(m - first < threads ? m - first : threads);
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < count)
        keys[threadIdx.x] = rank_key(Acc<T>(x[row * m + first + threadIdx.x]));
      __syncthreads();
      // Equal ones before this come first.
      const int own = static_cast<int>(i <= first ? 0 : i - first < count ? i - first : count);
      int before = 0;
#pragma unroll 8
      for (int j = 0; j < count; ++j) before += keys[j] > key || (keys[j] == key && j < own);
      place += before;
    }
    if (i < m && place < k) indices[row * k + place] = static_cast<int32_t>(i);
  }
}

// One row's two lists, by a warp. A step reads the lists that the step before it wrote.
template <class T>
struct Lists {
  const T* row;
  unsigned lane;

  __device__ bool before(int32_t p, int32_t q) const {
    const auto u = Acc<T>(row[p]), v = Acc<T>(row[q]);
    return u > v || (u == v && p < q);
  }
  // The first lists, sorted by places.
  __device__ void start(int32_t* to, int64_t begin, int64_t end) const {
    for (int64_t i = begin + lane; i < end; i += kWarp) {
      int64_t place = begin;
      for (int64_t j = begin; j < end; ++j)
        if (j != i && before(static_cast<int32_t>(j), static_cast<int32_t>(i))) ++place;
      to[place] = static_cast<int32_t>(i);
    }
  }
  // Puts one into the list [begin, end) of `from`, as one of `to`, which may be the same; what falls out.
  __device__ int32_t enter(int32_t* to, const int32_t* from, int64_t begin, int64_t end, int32_t one) const {
    int count = 0;
    for (int64_t j = begin + lane; j < end; j += kWarp) count += before(from[j], one);
    const int64_t place = begin + static_cast<int>(__reduce_add_sync(0xffffffffu, count));
    const int32_t out = place < end ? from[end - 1] : one;
    // From the end, so that no element is overwritten before it is read.
    for (int64_t top = begin + (end - begin - 1) / kWarp * kWarp; top >= begin; top -= kWarp) {
      const int64_t j = top + lane;
      int32_t value = 0;
      if (j < end) value = j < place ? from[j] : j == place ? one : from[j - 1];
      __syncwarp();
      if (j < end) to[j] = value;
      __syncwarp();
    }
    return out;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    running_kernel(int32_t* indices, const T* x, int64_t rows, int64_t m, int64_t steps, int64_t k,
                   int64_t both) {
  constexpr int64_t kRows = kThreads / kWarp;
  for (int64_t i = blockIdx.x * kRows + threadIdx.x / kWarp; i < rows; i += gridDim.x * kRows) {
    int32_t* out = indices + i * steps * both;
    const Lists<T> lists{x + i * m, threadIdx.x % kWarp};
    // The lists before the first step stand where the last one's will.
    int32_t* from = out + (steps - 1) * both;
    lists.start(from, 0, k);
    lists.start(from, k, both);
    __syncwarp();
    for (int64_t c = 0; c < steps; ++c) {
      int32_t* to = out + c * both;
      const int32_t left = lists.enter(to, from, 0, k, static_cast<int32_t>(both + c));
      lists.enter(to, from, k, both, left);
      from = to;
    }
  }
}

}  // namespace

void gather_last_forward(const Tensor& y, const Tensor& x, const Tensor& indices) {
  with_float(x.dtype(), [&]<class T>() { gather_as<T>(y, x, indices); });
}

void gather_last_backward(const Tensor& dx, const Tensor& indices, const Tensor& dy) {
  if (dx.numel() > 0) with_float(dx.dtype(), [&]<class T>() { scatter_as<T>(dx, indices, dy); });
}

void top_k_indices(const Tensor& indices, const Tensor& x) {
  if (indices.numel() == 0) return;
  const int64_t k = indices.dim(-1), m = x.dim(-1), rows = x.numel() / m;
  const auto threads = static_cast<int>(std::min<int64_t>(kThreads, (m + kWarp - 1) / kWarp * kWarp));
  const int64_t parts = (m + threads - 1) / threads;
  with_float(x.dtype(), [&]<class T>() {
    top_k_kernel<T><<<blocks_for(rows * parts, 1), threads, 0, stream()>>>(
        data<int32_t>(indices), data<const T>(x), rows, m, k, parts);
  });
  check_launch("top_k");
}

void running_top_k(const Tensor& indices, const Tensor& x, int64_t k) {
  if (indices.numel() == 0) return;
  const int64_t rows = x.dim(0), m = x.dim(1), steps = indices.dim(1), both = indices.dim(2);
  with_float(x.dtype(), [&]<class T>() {
    running_kernel<T><<<blocks_for(rows, kThreads / static_cast<int>(kWarp)), kThreads, 0, stream()>>>(
        data<int32_t>(indices), data<const T>(x), rows, m, steps, k, both);
  });
  check_launch("running_top_k");
}

}  // namespace weft::cuda
