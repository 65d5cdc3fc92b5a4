#pragma once
// Kernels that work row by row. A group of threads has a row, and each of its threads the same elements of it
// whatever the alignment, so that a sum depends on sizes alone. A row that fits stays in registers.

#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {

// V elements, moved 16 bytes at a time.
template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Vector {
  T v[V];
};

// `whole`: all V elements exist, aligned; else the first `count` of them, the others being zero.
template <bool whole, int V, class T>
__device__ Vector<T, V> load(const T* from, int64_t count) {
  if constexpr (whole) {
    return *reinterpret_cast<const Vector<T, V>*>(from);
  } else {
    Vector<T, V> x;
#pragma unroll
    for (int e = 0; e < V; ++e) x.v[e] = e < count ? from[e] : T{};
    return x;
  }
}
template <bool whole, int V, class T>
__device__ void store(T* to, const Vector<T, V>& x, int64_t count) {
  if constexpr (whole) {
    *reinterpret_cast<Vector<T, V>*>(to) = x;
  } else {
#pragma unroll
    for (int e = 0; e < V; ++e)
      if (e < count) to[e] = x.v[e];
  }
}

// Row r of a tensor that may be a column view: (N, C) or (N, H, D) with a pitch between leading rows.
template <class T>
struct PitchedRows {
  T* data;
  int64_t pitch, width, groups;

  explicit PitchedRows(const Tensor& x)
      : data(cuda::data<T>(x)),
        pitch(x.pitch()),
        width(x.dim(-1)),
        groups(x.rank() < 2 || width == 0 ? 1 : x.row_size() / width) {}
  __device__ T* operator[](int64_t r) const {
    const int64_t leading = divide(r, groups);
    return data + leading * pitch + r * width;
  }
  // Every row consists of whole aligned vectors.
  bool whole() const {
    constexpr int V = Pack<T>::kSize;
    return aligned(data) && width % V == 0 && pitch % V == 0;
  }
};

// The threads of a block that share a row: `lanes`, a power of two.
struct Group {
  int lanes, lane, index;

  __device__ explicit Group(int count)
      : lanes(count),
        lane(static_cast<int>(threadIdx.x) & (count - 1)),
        index(static_cast<int>(threadIdx.x) / count) {}

  // All threads of a warp call these together, and get the result of their own group.
  template <class A>
  __device__ A sum(A value) const {
    return fold<Add>(value);
  }
  template <class A>
  __device__ A max(A value) const {
    return fold<Larger>(value);
  }

 private:
  struct Add {
    template <class A>
    __device__ static A of(A a, A b) {
      return a + b;
    }
  };
  struct Larger {  // a NaN is passed over if it comes second
    template <class A>
    __device__ static A of(A a, A b) {
      return b > a ? b : a;
    }
  };
  // Of the group alone, so that groups need not keep step.
  __device__ void barrier() const {
    asm volatile("bar.sync %0, %1;" ::"r"(index + 1), "r"(lanes) : "memory");
  }
  template <class F, class A>
  __device__ A fold(A value) const {
    constexpr int kLanes = static_cast<int>(kWarp);
    for (int step = ::min(lanes, kLanes) / 2; step > 0; step /= 2)
      value = F::of(value, __shfl_xor_sync(0xffffffffu, value, step));
    if (lanes <= kLanes) return value;
    __shared__ A parts[kWarp];
    const int warps = lanes / kLanes;
    barrier();  // an earlier result has been read
    if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
    barrier();
    value = parts[index * warps + (lane & (warps - 1))];
    for (int step = warps / 2; step > 0; step /= 2)
      value = F::of(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
  }
};

// f(k, j) for each vector of V elements that this thread has of a row of n: it begins at j, and is the k-th.
// kHeld: how many there may be; 0: any number, and k stays 0.
template <int kHeld, int V, class F>
__device__ void each_vector(int n, const Group& group, F f) {
  if constexpr (kHeld > 0) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const int j = (k * group.lanes + group.lane) * V;
      if (j < n) f(k, j);
    }
  } else {
    for (int64_t j = int64_t{group.lane} * V; j < n; j += int64_t{group.lanes} * V) f(0, static_cast<int>(j));
  }
}

// This thread's part of a row: read once into registers, or where kHeld is 0 again at every use.
template <class T, int kHeld, bool whole>
class HeldRow {
 public:
  static constexpr int V = Pack<T>::kSize;
  __device__ HeldRow(const T* row, int n, const Group& group) : row_(row), n_(n) {
    if constexpr (kHeld > 0)
      each_vector<kHeld, V>(n, group, [&](int k, int j) { held_[k] = load<whole, V>(row + j, n - j); });
  }
  __device__ Vector<T, V> at(int k, int j) const {
    if constexpr (kHeld > 0)
      return held_[k];
    else
      return load<whole, V>(row_ + j, n_ - j);
  }

 private:
  const T* row_;
  int n_;
  Vector<T, V> held_[kHeld > 0 ? kHeld : 1];
};

// How rows of n elements are spread: vectors a thread holds (1, kMost or 0), threads a row, threads a block.
struct RowPlan {
  int held, lanes, threads;
  unsigned blocks(int64_t rows) const {
    const int64_t at_once = threads / lanes;
    return static_cast<unsigned>((rows + at_once - 1) / at_once);
  }
};

template <class T>
RowPlan plan_rows(int64_t n, int most_held, int most_lanes, int threads = kThreads) {
  CHECK(n < (int64_t{1} << 30), "a row of ", n, " elements");
  const int64_t vectors = (n + Pack<T>::kSize - 1) / Pack<T>::kSize;
  int lanes = 4;
  while (lanes < 32 && lanes < vectors) lanes *= 2;
  while (lanes < most_lanes && vectors > int64_t{most_held} * lanes) lanes *= 2;
  const int held = vectors <= lanes ? 1 : vectors <= int64_t{most_held} * lanes ? most_held : 0;
  return {held, lanes, std::max(threads, lanes)};
}

// Calls f.operator()<kHeld, whole>().
template <int kMost, class F>
void with_plan(const RowPlan& plan, bool whole, F f) {
  const auto with_held = [&]<bool kWhole>() {
    if (plan.held == 1)
      f.template operator()<1, kWhole>();
    else if (plan.held == kMost)
      f.template operator()<kMost, kWhole>();
    else
      f.template operator()<0, kWhole>();
  };
  if (whole)
    with_held.template operator()<true>();
  else
    with_held.template operator()<false>();
}

// to[j] = the sums that all groups of the block have of column j, in a fixed order. `shared`: n elements.
template <int kHeld, int V, class A>
__device__ void fold_groups(A* to, A (&sum)[kHeld][V], int n, const Group& group, A* shared) {
  constexpr int kLanes = static_cast<int>(kWarp);
  for (int step = kLanes / 2; step >= group.lanes; step /= 2) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k)
#pragma unroll
      for (int e = 0; e < V; ++e) sum[k][e] += __shfl_xor_sync(0xffffffffu, sum[k][e], step);
  }
  const int unit = ::max(group.lanes, kLanes), own = static_cast<int>(threadIdx.x) / unit;
  const int units = static_cast<int>(blockDim.x) / unit;
  const bool first = static_cast<int>(threadIdx.x) % unit < group.lanes;
  for (int u = 0; u < units; ++u) {
    if (own == u && first)
      each_vector<kHeld, V>(n, group, [&](int k, int j) {
#pragma unroll
        for (int e = 0; e < V; ++e) {
          if (j + e >= n) continue;
          const A total = u == 0 ? sum[k][e] : shared[j + e] + sum[k][e];
          if (u + 1 < units)
            shared[j + e] = total;
          else
            to[j + e] = total;
        }
      });
    __syncthreads();
  }
}

// Shared memory that fold_groups needs.
template <class A>
size_t fold_bytes(const RowPlan& plan, int64_t n) {
  const bool alone = plan.lanes == plan.threads || plan.held == 0;
  return alone ? 0 : static_cast<size_t>(n) * sizeof(A);
}

}  // namespace weft::cuda
