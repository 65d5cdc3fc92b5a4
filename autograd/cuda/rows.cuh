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
  int64_t pitch, width;  // pitch: between rows, but for `skip` more after each `groups` of them

  explicit PitchedRows(const Tensor& x) : data(cuda::data<T>(x)), pitch(x.pitch()), width(x.dim(-1)) {
    const int64_t groups = x.rank() < 2 || width == 0 ? 1 : x.row_size() / width;
    CHECK(x.numel() == 0 || x.numel() / width <= UINT32_MAX, "rows of ", x.shape());
    if (x.dense()) {
      pitch = width;
    } else if (groups > 1) {
      skip = pitch - x.row_size();
      pitch = width;
      inverse = UINT64_MAX / static_cast<uint64_t>(groups) + 1;
    }
  }
  __device__ T* operator[](int64_t row) const {
    const auto r = static_cast<uint32_t>(row);
    // r / groups, exact for these r; a division would cost as much as a vector of the row. Dense rows go the
    // same way, with 0: a branch would stand before the first load.
    const auto leading = static_cast<int64_t>(__umul64hi(r, inverse));
    return data + r * pitch + leading * skip;
  }
  // Every row consists of whole aligned vectors.
  bool whole() const {
    constexpr int V = Pack<T>::kSize;
    return aligned(data) && width % V == 0 && pitch % V == 0 && skip % V == 0;
  }

 private:
  int64_t skip = 0;
  uint64_t inverse = 0;  // 2^64 / groups, rounded up
};

constexpr int kMostRowThreads = 512;  // of a block with several rows

// Of a power of two; a division by it would take long, and stands before a kernel's first load.
__device__ inline int log2_of(int power) { return 31 - __clz(power); }

// The threads of a block that share a row: a power of two, kLanes or, where that is 0, as told.
template <int kLanes = 0>
struct GroupOf {
  int lane, index;

  __device__ explicit GroupOf(int lanes)
      : lane(static_cast<int>(threadIdx.x) & (lanes - 1)),
        index(static_cast<int>(threadIdx.x) >> log2_of(lanes)),
        lanes_(lanes) {
    if constexpr (kLanes > 0) {
      lane = static_cast<int>(threadIdx.x) % kLanes;
      index = static_cast<int>(threadIdx.x) / kLanes;
    }
  }
  __device__ int lanes() const { return kLanes > 0 ? kLanes : lanes_; }
  __device__ int groups() const { return static_cast<int>(blockDim.x) >> log2_of(lanes()); }

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
  // Of the group alone, so that groups need not keep step. Each has its barrier by a constant number: a
  // kernel that computes the number is given all sixteen, and of 64 on a multiprocessor that leaves room for
  // four blocks.
  __device__ void barrier() const {
    constexpr int kMost = kMostRowThreads / (kLanes > 0 ? kLanes : 64);
    barrier_of<kMost>();
  }
  template <int number>
  __device__ void barrier_of() const {
    if constexpr (number > 1)
      if (index != number - 1) return barrier_of<number - 1>();
    asm volatile("bar.sync %0, %1;" ::"n"(number), "r"(lanes()) : "memory");
  }
  template <class F, class A>
  __device__ A fold(A value) const {
    constexpr int kAll = static_cast<int>(kWarp);
    if (lanes() < kAll) {
      for (int step = lanes() / 2; step > 0; step /= 2)
        value = F::of(value, __shfl_xor_sync(0xffffffffu, value, step));
      return value;
    }
#pragma unroll
    for (int step = kAll / 2; step > 0; step /= 2)
      value = F::of(value, __shfl_xor_sync(0xffffffffu, value, step));
    if (lanes() == kAll) return value;
    // Two places by turns: whoever writes to one has met all others since they read it.
    __shared__ A parts[2][kWarp];
    A* const mine = parts[turn_];
    turn_ ^= 1;
    const int warps = lanes() / kAll;
    if (threadIdx.x % kWarp == 0) mine[threadIdx.x / kWarp] = value;
    barrier();
    value = mine[index * warps + (lane & (warps - 1))];
    for (int step = warps / 2; step > 0; step /= 2)
      value = F::of(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
  }

  int lanes_;
  mutable int turn_ = 0;
};
using Group = GroupOf<>;

// f(k, j) for each vector of V elements that this thread has of a row of n: it begins at j, and is the k-th.
// kHeld: how many there may be; 0: any number, and k stays 0. each_slot: those held but past the end of the
// row too, which are zero; without a branch around each, their instructions mix.
template <int kHeld, int V, class G, class F>
__device__ void each_vector(int n, const G& group, F f) {
  if constexpr (kHeld > 0) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const int j = (k * group.lanes() + group.lane) * V;
      if (j < n) f(k, j);
    }
  } else {
    for (int64_t j = int64_t{group.lane} * V; j < n; j += int64_t{group.lanes()} * V)
      f(0, static_cast<int>(j));
  }
}

template <int kHeld, int V, class G, class F>
__device__ void each_slot(int n, const G& group, F f) {
  if constexpr (kHeld > 0) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) f(k, (k * group.lanes() + group.lane) * V);
  } else {
    each_vector<kHeld, V>(n, group, f);
  }
}

// This thread's part of a row: read once into registers, or where kHeld is 0 again at every use.
template <class T, int kHeld, bool whole>
class HeldRow {
 public:
  static constexpr int V = Pack<T>::kSize;
  template <class G>
  __device__ HeldRow(const T* row, int n, const G& group) : row_(row), n_(n) {
    const T* const own = row + group.lane * V;
    each_slot<kHeld, V>(kHeld > 0 ? n : 0, group, [&](int k, int j) {
      held_[k] = j < n ? as_words(load<whole, V>(own + k * group.lanes() * V, n - j)) : uint4{};
    });
  }
  // Of rows in shared memory, where a thread's own vectors are `stride` apart.
  template <class G>
  __device__ HeldRow(const Pack<T>* own, int stride, int n, const G& group) : row_(nullptr), n_(n) {
    static_assert(kHeld > 0);
    each_slot<kHeld, V>(n, group, [&](int k, int j) {
      held_[k] = j < n ? *reinterpret_cast<const uint4*>(own + k * stride) : uint4{};
    });
  }
  __device__ Vector<T, V> at(int k, int j) const {
    if constexpr (kHeld > 0) {
      Vector<T, V> x;
      memcpy(&x, &held_[k], sizeof x);
      return x;
    } else {
      return load<whole, V>(row_ + j, n_ - j);
    }
  }
  // What comes after is counted from the row as it was read: kept in its accumulator type it would take twice
  // the registers.
  __device__ void settle() {
    if constexpr (kHeld > 0)
#pragma unroll
      for (int k = 0; k < kHeld; ++k)
        asm volatile("" : "+r"(held_[k].x), "+r"(held_[k].y), "+r"(held_[k].z), "+r"(held_[k].w));
  }

 private:
  // As words: of elements of 16 bits the compiler would choose each by itself.
  __device__ static uint4 as_words(const Vector<T, V>& x) {
    uint4 y;
    static_assert(sizeof x == sizeof y);
    memcpy(&y, &x, sizeof y);
    return y;
  }
  const T* row_;
  int n_;
  uint4 held_[kHeld > 0 ? kHeld : 1];
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
  CHECK(threads <= kMostRowThreads, "several rows for a block of ", threads, " threads");
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

// Calls f.operator()<kHeld, whole, kLanes>(): of whole rows of bf16 with up to kMostLanes all are constants.
template <class T, int kMost, int kMostLanes = 256, class F>
void with_row_constants(const RowPlan& plan, int64_t n, bool whole, F f) {
  if constexpr (std::is_same_v<T, bf16>) {
    const int64_t slot = int64_t{plan.lanes} * Pack<T>::kSize, held = (n + slot - 1) / slot;
    const auto with_held = [&]<int kLanes>() {
      // More than a warp shares a row only if fewer lanes could not hold it.
      if constexpr (kLanes == 32 || kMost == 3)
        if (held == 2) return f.template operator()<2, true, kLanes>();
      if constexpr (kLanes == 32)
        if (held == 1) return f.template operator()<1, true, kLanes>();
      if (held == 3) return f.template operator()<3, true, kLanes>();
      f.template operator()<kMost, true, kLanes>();
    };
    if (whole && plan.held > 0 && plan.lanes == 32) return with_held.template operator()<32>();
    if (whole && plan.held > 0 && plan.lanes == 64) return with_held.template operator()<64>();
    if constexpr (kMostLanes == 256) {
      if (whole && plan.held > 0 && plan.lanes == 128) return with_held.template operator()<128>();
      if (whole && plan.held > 0 && plan.lanes == 256) return with_held.template operator()<256>();
    }
  }
  with_plan<kMost>(plan, whole, [&]<int kHeld, bool kWhole>() { f.template operator()<kHeld, kWhole, 0>(); });
}

// to[j] = the sums that all groups of the block have of column j, in a fixed order. `shared`: fold_bytes.
template <int kHeld, int V, bool whole, class A, class G>
__device__ void fold_groups(A* to, A (&sum)[kHeld][V], int n, const G& group, A* shared) {
  constexpr int kLanes = static_cast<int>(kWarp);
  for (int step = kLanes / 2; step >= group.lanes(); step /= 2) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k)
#pragma unroll
      for (int e = 0; e < V; ++e) sum[k][e] += __shfl_xor_sync(0xffffffffu, sum[k][e], step);
  }
  const int unit = ::max(group.lanes(), kLanes), units = static_cast<int>(blockDim.x) / unit;
  __syncthreads();  // whatever was in `shared` has been read
  if (static_cast<int>(threadIdx.x) % unit < group.lanes()) {
    A* own = shared + int64_t{threadIdx.x / unit} * n;
    each_vector<kHeld, V>(n, group, [&](int k, int j) {
      Vector<A, V> x;
#pragma unroll
      for (int e = 0; e < V; ++e) x.v[e] = sum[k][e];
      store<whole, V>(own + j, x, n - j);
    });
  }
  __syncthreads();
  for (int j = static_cast<int>(threadIdx.x); j < n; j += static_cast<int>(blockDim.x)) {
    A total = shared[j];
    for (int u = 1; u < units; ++u) total += shared[int64_t{u} * n + j];
    to[j] = total;
  }
}

// Shared memory that fold_groups needs.
template <class A>
size_t fold_bytes(const RowPlan& plan, int64_t n) {
  const int units = plan.threads / std::max(plan.lanes, static_cast<int>(kWarp));
  return plan.held == 0 ? 0 : static_cast<size_t>(units * n) * sizeof(A);
}

}  // namespace weft::cuda
