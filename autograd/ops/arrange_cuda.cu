#include "autograd/cuda/buckets.h"
#include "autograd/cuda/kernel.cuh"
#include "autograd/ops/arrange.h"

namespace weft::cuda {
namespace {

// Calls f with an unsigned integer of an element's size: moving elements needs no more of their type.
template <class F>
void with_size(Dtype dtype, F&& f) {
  switch (size_of(dtype)) {
    case 2: return f.template operator()<uint16_t>();
    case 4: return f.template operator()<uint32_t>();
    default: return f.template operator()<uint64_t>();
  }
}

struct Steps {
  int rank;
  int64_t extent[Shape::kMaxRank], step[Shape::kMaxRank];
};

template <class T>
void permute_as(const Tensor& y, const Tensor& x, const Steps& s) {
  T* to = data<T>(y);
  const T* from = data<T>(x);
  each(y.numel(), [=] __device__(int64_t i) {
    int64_t rest = i, at = 0;
    for (int d = s.rank - 1; d >= 0; --d) {
      const int64_t next = divide(rest, s.extent[d]);
      at += rest * s.step[d];
      rest = next;
    }
    to[i] = from[at];
  });
}

constexpr int kTile = 32, kTileRows = 8;

// (B, M, N) -> (B, N, M) through a tile, so that both sides move whole lines.
template <class T>
__global__ void transpose_kernel(T* y, const T* x, int64_t m, int64_t n) {
  __shared__ T tile[kTile][kTile + 1];
  const int64_t base = int64_t{blockIdx.z} * m * n;
  const int64_t row = int64_t{blockIdx.y} * kTile, column = int64_t{blockIdx.x} * kTile;
  for (int r = threadIdx.y; r < kTile; r += kTileRows)
    if (row + r < m && column + threadIdx.x < n)
      tile[r][threadIdx.x] = x[base + (row + r) * n + column + threadIdx.x];
  __syncthreads();
  for (int r = threadIdx.y; r < kTile; r += kTileRows)
    if (column + r < n && row + threadIdx.x < m)
      y[base + (column + r) * m + row + threadIdx.x] = tile[threadIdx.x][r];
}

// The extents of a permutation that only swaps its last two groups of axes, as (B, M, N); B 0 if it does
// more.
struct Swap {
  int64_t b = 0, m = 0, n = 0;
};
Swap swap_of(const Tensor& x, const std::vector<int>& order) {
  const auto rank = static_cast<int>(order.size());
  int fixed = 0;
  while (fixed < rank && order[fixed] == fixed) ++fixed;
  if (fixed == rank) return {};
  const int second = order[fixed];  // y begins, behind what is fixed, with these axes of x
  for (int i = fixed; i < rank; ++i)
    if (order[i] != fixed + (i - fixed + second - fixed) % (rank - fixed)) return {};
  return {x.shape().product(0, fixed), x.shape().product(fixed, second), x.shape().product(second, rank)};
}

template <class T>
struct CopyBlock {
  __device__ static T merge(T, T from) { return from; }
};
template <class T>
struct AddBlock {
  __device__ static T merge(T to, T from) {
    return static_cast<T>(static_cast<Acc<T>>(to) + static_cast<Acc<T>>(from));
  }
};

template <class T, class Merge>
void move_block(const Tensor& to, int64_t to_begin, const Tensor& from, int64_t from_begin, int axis,
                int64_t count) {
  const int64_t outer = to.shape().product(0, axis), inner = to.shape().product(axis + 1, to.rank());
  const int64_t run = count * inner, to_step = to.dim(axis) * inner, from_step = from.dim(axis) * inner;
  T* y = data<T>(to) + to_begin * inner;
  const T* x = data<T>(from) + from_begin * inner;
  each(outer * run, [=] __device__(int64_t i) {
    const int64_t o = divide(i, run);
    T& target = y[o * to_step + i];
    target = Merge::merge(target, x[o * from_step + i]);
  });
}

template <class T>
void gather_as(const Tensor& y, const Tensor& x, const Tensor& index, T fill) {
  const int64_t width = y.row_size(), rows = x.dim(0);
  T* to = data<T>(y);
  const T* from = data<T>(x);
  const int32_t* at = data<int32_t>(index);
  each(y.numel(), [=] __device__(int64_t i) {
    int64_t column = i;
    const int64_t row = at[divide(column, width)];
    REQUIRE_ON_DEVICE(row >= -1 && row < rows);
    to[i] = row < 0 ? fill : from[row * width + column];
  });
}

// An element of `to` sums what goes to it in order of i, as on the CPU: `start` and `order` list, for each
// row of `to`, which rows of `from` it takes.
template <class T>
void scatter_as(const Tensor& to, const Tensor& from, const Tensor& start, const Tensor& order) {
  const int64_t width = to.row_size();
  T* y = data<T>(to);
  const T* x = data<T>(from);
  const int32_t *first = data<int32_t>(start), *which = data<int32_t>(order);
  each(to.numel(), [=] __device__(int64_t i) {
    int64_t column = i;
    const int64_t row = divide(column, width);
    const int32_t begin = first[row], end = first[row + 1];
    if (begin == end) return;
    auto sum = static_cast<Acc<T>>(y[i]);
    for (int32_t j = begin; j < end; ++j) sum += static_cast<Acc<T>>(x[which[j] * width + column]);
    y[i] = static_cast<T>(sum);
  });
}

}  // namespace

void permute(const Tensor& y, const Tensor& x, const std::vector<int>& order) {
  if (y.numel() == 0) return;
  const Swap swap = swap_of(x, order);
  const int64_t tiles = (swap.m + kTile - 1) / kTile;
  if (swap.b > 0 && swap.b < 65536 && tiles < 65536 && swap.m > 1 && swap.n > 1) {
    const dim3 grid(static_cast<unsigned>((swap.n + kTile - 1) / kTile), static_cast<unsigned>(tiles),
                    static_cast<unsigned>(swap.b));
    with_size(x.dtype(), [&]<class T>() {
      transpose_kernel<T>
          <<<grid, dim3(kTile, kTileRows), 0, stream()>>>(data<T>(y), data<const T>(x), swap.m, swap.n);
    });
    return check_launch("transpose");
  }
  Steps s{x.rank(), {}, {}};
  int64_t in[Shape::kMaxRank], step = 1;
  for (int i = s.rank - 1; i >= 0; --i) {
    in[i] = step;
    step *= x.dim(i);
  }
  for (int i = 0; i < s.rank; ++i) {
    s.extent[i] = y.dim(i);
    s.step[i] = in[order[i]];
  }
  with_size(x.dtype(), [&]<class T>() { permute_as<T>(y, x, s); });
}

void copy_block(const Tensor& to, int64_t to_begin, const Tensor& from, int64_t from_begin, int axis,
                int64_t count) {
  with_size(to.dtype(),
            [&]<class T>() { move_block<T, CopyBlock<T>>(to, to_begin, from, from_begin, axis, count); });
}

void add_block(const Tensor& to, int64_t to_begin, const Tensor& from, int64_t from_begin, int axis,
               int64_t count) {
  with_float(to.dtype(),
             [&]<class T>() { move_block<T, AddBlock<T>>(to, to_begin, from, from_begin, axis, count); });
}

void gather_rows(const Tensor& y, const Tensor& x, const Tensor& index, double fill) {
  if (x.dtype() == Dtype::i32) return gather_as<int32_t>(y, x, index, static_cast<int32_t>(fill));
  with_float(x.dtype(),
             [&]<class T>() { gather_as<T>(y, x, index, static_cast<T>(static_cast<Acc<T>>(fill))); });
}

void scatter_rows(const Tensor& to, const Tensor& from, const Tensor& index) {
  if (to.numel() == 0 || from.numel() == 0) return;
  const Buckets b = buckets_of(index, to.dim(0));
  with_float(to.dtype(), [&]<class T>() { scatter_as<T>(to, from, b.start, b.order); });
}

}  // namespace weft::cuda
