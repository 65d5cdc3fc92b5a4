#include "autograd/cuda/kernel.cuh"
#include "autograd/ops/triangle.h"

namespace weft::cuda {
namespace {

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    lower_kernel(int64_t packs, T* y, const T* x, int64_t rows, int64_t columns, int64_t diagonal, T blank) {
  struct alignas(V * sizeof(T)) P {
    T v[V];
  };
  const int64_t stride = int64_t{gridDim.x} * blockDim.x, per_row = columns / V;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < packs; i += stride) {
    int64_t column = i, row = divide(column, per_row);
    divide(row, rows);  // leaves the row within its matrix
    const int64_t kept = row + diagonal + 1 - column * V;
    P out;
    if (kept > 0) out = reinterpret_cast<const P*>(x)[i];  // what is blank is not read
#pragma unroll
    for (int j = 0; j < V; ++j)
      if (j >= kept) out.v[j] = blank;
    reinterpret_cast<P*>(y)[i] = out;
  }
}

template <class T>
void lower_as(const Tensor& y, const Tensor& x, int64_t diagonal, double fill) {
  constexpr int kSize = Pack<T>::kSize;
  const T blank = static_cast<T>(static_cast<Acc<T>>(fill));
  const int64_t rows = x.dim(-2), columns = x.dim(-1), n = x.numel();
  if (columns % kSize == 0 && aligned(y.raw()) && aligned(x.raw()))
    lower_kernel<T, kSize><<<blocks_for(n / kSize), kThreads, 0, stream()>>>(
        n / kSize, data<T>(y), data<const T>(x), rows, columns, diagonal, blank);
  else
    lower_kernel<T, 1><<<blocks_for(n), kThreads, 0, stream()>>>(n, data<T>(y), data<const T>(x), rows,
                                                                 columns, diagonal, blank);
  check_launch("lower_triangle");
}

template <class T>
void sums_across(const Tensor& y, const Tensor& x, int64_t n, int64_t inner, bool reverse) {
  T* to = data<T>(y);
  const T* from = data<T>(x);
  each(x.numel() / n, [=] __device__(int64_t task) {
    int64_t i = task;
    const int64_t o = divide(i, inner);
    Acc<T> sum = 0;
    for (int64_t k = 0; k < n; ++k) {
      const int64_t at = (o * n + (reverse ? n - 1 - k : k)) * inner + i;
      to[at] = static_cast<T>(sum += Acc<T>(from[at]));
    }
  });
}

constexpr int kTile = 32;

// Along the last dimension: a warp takes 32 rows through a tile, so that memory is read along rows while
// each thread sums one of them in order.
template <class T>
__global__ void __launch_bounds__(kTile)
    sums_along_kernel(T* y, const T* x, int64_t rows, int64_t n, bool reverse) {
  __shared__ Acc<T> tile[kTile][kTile + 1];
  const int lane = static_cast<int>(threadIdx.x);
  for (int64_t first = int64_t{blockIdx.x} * kTile; first < rows; first += int64_t{gridDim.x} * kTile) {
    const int count = static_cast<int>(rows - first < kTile ? rows - first : kTile);
    Acc<T> sum = 0;
    for (int64_t k = 0; k < n; k += kTile) {
      const int64_t column = reverse ? n - 1 - k - lane : k + lane;
      const bool inside = column >= 0 && column < n;
      for (int r = 0; r < count; ++r) tile[r][lane] = inside ? Acc<T>(x[(first + r) * n + column]) : 0;
      __syncwarp();
      if (lane < count)
        for (int j = 0; j < kTile; ++j) tile[lane][j] = sum += tile[lane][j];
      __syncwarp();
      if (inside)
        for (int r = 0; r < count; ++r) y[(first + r) * n + column] = static_cast<T>(tile[r][lane]);
      __syncwarp();
    }
  }
}

constexpr int kColumns = 128;  // of x, one a thread
constexpr int kRows = 8;       // of y, solved together in registers
constexpr int kPanel = 64;     // columns of a, in shared memory

// Rows are counted from the end if `transposed`, which makes (1 + L)^T lower again. `rows` holds what is
// solved so far, in the accumulator type; a thread reads there only what it wrote.
template <class T>
__global__ void __launch_bounds__(kColumns)
    solve_kernel(Acc<T>* rows, const T* __restrict__ a, const T* __restrict__ x, int64_t matrices, int64_t n,
                 int64_t d, int64_t column_blocks, bool transposed) {
  using A = Acc<T>;
  __shared__ A panel[kPanel][kRows];
  for (int64_t task = blockIdx.x; task < matrices * column_blocks; task += gridDim.x) {
    const int64_t m = task / column_blocks, column = task % column_blocks * kColumns + threadIdx.x;
    const bool active = column < d;
    const auto place = [&](int64_t row) { return (m * n + (transposed ? n - 1 - row : row)) * d + column; };
    for (int64_t first = 0; first < n; first += kRows) {
      A sum[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) sum[r] = active && first + r < n ? A(x[place(first + r)]) : A(0);
      for (int64_t begin = 0; begin < first + kRows; begin += kPanel) {
        __syncthreads();
        for (int i = threadIdx.x; i < kPanel * kRows; i += kColumns) {
          // Threads run along the rows of a as it lies in memory.
          const int r = transposed ? i % kRows : i / kPanel, s = transposed ? i / kRows : i % kPanel;
          const int64_t row = first + r, other = begin + s;
          A value = 0;
          if (row < n && other < row)
            value = A(a[m * n * n + (transposed ? (n - 1 - other) * n + n - 1 - row : row * n + other)]);
          panel[s][r] = value;
        }
        __syncthreads();
        const int known = static_cast<int>(first - begin < kPanel ? first - begin : kPanel);
        if (active)
#pragma unroll 4
          for (int s = 0; s < known; ++s) {
            const A value = rows[place(begin + s)];
#pragma unroll
            for (int r = 0; r < kRows; ++r) sum[r] -= panel[s][r] * value;
          }
        if (first - begin < kPanel) {  // the panel ends with the triangle of these rows
          const int own = static_cast<int>(first - begin);
#pragma unroll
          for (int r = 1; r < kRows; ++r)
#pragma unroll
            for (int q = 0; q < r; ++q) sum[r] -= panel[own + q][r] * sum[q];
        }
      }
      if (active)
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          if (first + r < n) rows[place(first + r)] = sum[r];
    }
  }
}

template <class T>
void solve_as(const Tensor& y, const Tensor& a, const Tensor& x, bool transposed) {
  const int64_t n = x.dim(-2), d = x.dim(-1), matrices = x.numel() / (n * d);
  const int64_t column_blocks = (d + kColumns - 1) / kColumns;
  const bool direct = y.dtype() == wide_of(y.dtype());
  const Tensor rows = direct ? y : empty(y.shape(), wide_of(y.dtype()), y.device());
  solve_kernel<T><<<blocks_for(matrices * column_blocks, 1), kColumns, 0, stream()>>>(
      data<Acc<T>>(rows), data<const T>(a), data<const T>(x), matrices, n, d, column_blocks, transposed);
  check_launch("solve_unit_lower");
  if (!direct) y.copy_from(rows);
}

}  // namespace

void lower_triangle(const Tensor& y, const Tensor& x, int64_t diagonal, double fill) {
  if (x.numel() > 0) with_float(x.dtype(), [&]<class T>() { lower_as<T>(y, x, diagonal, fill); });
}

void cumulative_sum(const Tensor& y, const Tensor& x, int axis, bool reverse) {
  if (x.numel() == 0) return;
  const int64_t inner = x.shape().product(axis + 1, x.rank()), n = x.dim(axis), rows = x.numel() / n;
  with_float(x.dtype(), [&]<class T>() {
    if (inner > 1) return sums_across<T>(y, x, n, inner, reverse);
    sums_along_kernel<T>
        <<<blocks_for(rows, kTile), kTile, 0, stream()>>>(data<T>(y), data<const T>(x), rows, n, reverse);
    check_launch("cumulative_sum");
  });
}

void solve_unit_lower(const Tensor& y, const Tensor& a, const Tensor& x, bool transposed) {
  if (x.numel() > 0) with_float(x.dtype(), [&]<class T>() { solve_as<T>(y, a, x, transposed); });
}

}  // namespace weft::cuda
