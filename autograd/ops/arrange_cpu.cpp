#include <algorithm>
#include <array>
#include <cstring>

#include "autograd/ops/arrange.h"
#include "autograd/parallel.h"

namespace weft::cpu {

namespace {

using Steps = std::array<int64_t, Shape::kMaxRank>;
// A row of the tile is a cache line of f32; as few as 8, since lines a power of two apart share a set of the
// cache.
constexpr int64_t kTileRows = 16, kTileColumns = 8;

// Where x's last axis becomes y's axis `across`, reading or writing jumps; in tiles of both axes neither
// leaves the cache. step[i]: elements of x from one index of y's axis i to the next.
template <class T>
void permute_tiles(const Tensor& y, const Tensor& x, const Steps& step, int across) {
  const int last = y.rank() - 1;
  Steps out{};
  int64_t s = 1;
  for (int i = last; i >= 0; --i) {
    out[i] = s;
    s *= y.dim(i);
  }
  const int64_t rows = y.dim(across), columns = y.dim(last), tiles = (rows + kTileRows - 1) / kTileRows;
  parallel_for(y.numel() / (rows * columns) * tiles, 1 + (1 << 14) / (kTileRows * columns),
               [&](int64_t begin, int64_t end) {
                 for (int64_t task = begin; task < end; ++task) {
                   const int64_t r0 = task % tiles * kTileRows, r1 = std::min(rows, r0 + kTileRows);
                   const T* from = x.data<T>();
                   T* to = y.data<T>();
                   int64_t rest = task / tiles;
                   for (int i = last - 1; i >= 0; --i) {
                     if (i == across) continue;
                     from += rest % y.dim(i) * step[i];
                     to += rest % y.dim(i) * out[i];
                     rest /= y.dim(i);
                   }
                   for (int64_t c0 = 0; c0 < columns; c0 += kTileColumns)
                     for (int64_t r = r0; r < r1; ++r)
                       for (int64_t c = c0; c < std::min(columns, c0 + kTileColumns); ++c)
                         to[r * out[across] + c] = from[r + c * step[last]];
                 }
               });
}

}  // namespace

void permute(const Tensor& y, const Tensor& x, const std::vector<int>& order) {
  if (y.numel() == 0) return;
  const int rank = x.rank();
  Steps in{}, step{};
  int64_t s = 1;
  for (int i = rank - 1; i >= 0; --i) {
    in[i] = s;
    s *= x.dim(i);
  }
  for (int i = 0; i < rank; ++i) step[i] = in[order[i]];
  if (rank > 0 && order[rank - 1] != rank - 1) {
    const auto across = static_cast<int>(std::find(order.begin(), order.end(), rank - 1) - order.begin());
    if (x.dtype() == Dtype::i32) return permute_tiles<int32_t>(y, x, step, across);
    return with_float(x.dtype(), [&]<class T>() { permute_tiles<T>(y, x, step, across); });
  }
  // Trailing axes that stay in place move as one run of bytes.
  int64_t run = size_of(x.dtype());
  int last = rank;
  while (last > 0 && order[last - 1] == last - 1) run *= x.dim(--last);
  const char* from = static_cast<const char*>(x.raw());
  char* to = static_cast<char*>(y.raw());
  const int64_t item = size_of(x.dtype());
  parallel_for(y.shape().product(0, last), 1 + (1 << 16) / run, [&](int64_t begin, int64_t end) {
    Steps at{};
    int64_t rest = begin, offset = 0;
    for (int i = last - 1; i >= 0; --i) {
      at[i] = rest % y.dim(i);
      rest /= y.dim(i);
      offset += at[i] * step[i];
    }
    for (int64_t o = begin; o < end; ++o) {
      std::memcpy(to + o * run, from + offset * item, static_cast<size_t>(run));
      for (int i = last - 1; i >= 0; --i) {  // the next index, as an odometer turns
        offset += step[i];
        if (++at[i] < y.dim(i)) break;
        offset -= at[i] * step[i];
        at[i] = 0;
      }
    }
  });
}

namespace {

// f(row of to, row of from, elements) for each run of a block.
template <class T, class F>
void each_run(const Tensor& to, int64_t to_begin, const Tensor& from, int64_t from_begin, int axis,
              int64_t count, F f) {
  const int64_t outer = to.shape().product(0, axis), inner = to.shape().product(axis + 1, to.rank()),
                run = count * inner;
  if (run == 0 || outer == 0) return;
  T* y = static_cast<T*>(to.raw()) + to_begin * inner;
  const T* x = static_cast<const T*>(from.raw()) + from_begin * inner;
  const int64_t y_step = to.dim(axis) * inner, x_step = from.dim(axis) * inner;
  parallel_for(outer, 1 + (1 << 14) / run, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(y + i * y_step, x + i * x_step, run);
  });
}

}  // namespace

void copy_block(const Tensor& to, int64_t to_begin, const Tensor& from, int64_t from_begin, int axis,
                int64_t count) {
  const auto copy = [](auto* y, const auto* x, int64_t n) { std::copy(x, x + n, y); };
  if (to.dtype() == Dtype::i32) return each_run<int32_t>(to, to_begin, from, from_begin, axis, count, copy);
  with_float(to.dtype(), [&]<class T>() { each_run<T>(to, to_begin, from, from_begin, axis, count, copy); });
}

void add_block(const Tensor& to, int64_t to_begin, const Tensor& from, int64_t from_begin, int axis,
               int64_t count) {
  with_float(to.dtype(), [&]<class T>() {
    each_run<T>(to, to_begin, from, from_begin, axis, count, [](T* y, const T* x, int64_t n) {
      for (int64_t i = 0; i < n; ++i)
        y[i] = static_cast<T>(static_cast<Acc<T>>(y[i]) + static_cast<Acc<T>>(x[i]));
    });
  });
}

void gather_rows(const Tensor& y, const Tensor& x, const Tensor& index, double fill) {
  const int64_t n = y.row_size(), rows = x.dim(0);
  const int32_t* at = index.data<int32_t>();
  for (int64_t i = 0; i < index.dim(0); ++i)
    CHECK(at[i] >= -1 && at[i] < rows, "gather_rows: index ", at[i], " of ", rows, " rows");
  const auto move = [&](auto* to, const auto* from, auto value) {
    parallel_for(index.dim(0), 1 + (1 << 14) / (n + 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (at[i] < 0)
          std::fill(to + i * n, to + (i + 1) * n, value);
        else
          std::copy(from + at[i] * n, from + (at[i] + 1) * n, to + i * n);
      }
    });
  };
  if (x.dtype() == Dtype::i32) return move(y.data<int32_t>(), x.data<int32_t>(), static_cast<int32_t>(fill));
  with_float(x.dtype(),
             [&]<class T>() { move(y.data<T>(), x.data<T>(), static_cast<T>(static_cast<Acc<T>>(fill))); });
}

void scatter_rows(const Tensor& to, const Tensor& from, const Tensor& index) {
  const int64_t n = to.row_size();
  const int32_t* at = index.data<int32_t>();
  with_float(to.dtype(), [&]<class T>() {
    T* y = to.data<T>();
    const T* x = from.data<T>();
    // Cut across columns, so that every element of `to` has one writer and sums in order of i.
    parallel_for(n, 1 + (1 << 14) / (index.dim(0) + 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = 0; i < index.dim(0); ++i) {
        if (at[i] < 0) continue;
        for (int64_t j = begin; j < end; ++j) {
          T& target = y[at[i] * n + j];
          target = static_cast<T>(static_cast<Acc<T>>(target) + static_cast<Acc<T>>(x[i * n + j]));
        }
      }
    });
  });
}

}  // namespace weft::cpu
