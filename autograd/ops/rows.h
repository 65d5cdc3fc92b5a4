#pragma once
// A tensor as rows of its last dimension, and sums in an order that depends on sizes alone: what
// normalisation, softmax and losses share on the CPU.

#include <algorithm>
#include <limits>

#include "autograd/tensor.h"

namespace weft {

// All dimensions but the last.
inline int64_t row_count(const Tensor& x) { return x.shape().product(0, x.rank() - 1); }

// Rows per task such that a task moves some 16 thousand elements.
inline int64_t row_grain(int64_t width) { return 1 + (int64_t{1} << 14) / (width + 1); }

// What such kernels take as rows: a vector is one row, with adjacent elements.
inline Tensor as_rows(const Tensor& x) { return x.rank() == 1 ? x.contiguous() : x; }
// Memory for the gradient of input i, for such a kernel to write.
template <class Backward>
Tensor room_for_rows(Backward& grads, int i, const Tensor& like) {
  return like.rank() == 1 ? empty_like(like) : grads.room(i, like);
}

// Row r of a tensor that may be a column view: (N, C) or (N, H, D) with a pitch between leading rows.
template <class T>
class Rows {
 public:
  explicit Rows(const Tensor& x)
      : data_(x.data<T>()),
        pitch_(x.pitch()),
        width_(x.dim(-1)),
        groups_(x.rank() < 2 || width_ == 0 ? 1 : x.row_size() / width_) {
    CHECK(x.rank() != 1 || x.dense(), "rows: a vector with a pitch of ", pitch_);
  }
  T* operator[](int64_t r) const { return data_ + r / groups_ * pitch_ + r % groups_ * width_; }

 private:
  T* data_;
  int64_t pitch_, width_, groups_;
};

// to = value. An assignment of a bf16 as a whole keeps gcc from vectorising a simd loop.
template <class T>
inline void store(T& to, Acc<T> value) {
  if constexpr (std::is_same_v<T, bf16>)
    to.bits = bf16(value).bits;
  else
    to = value;
}

// Blocks of rows: a parameter's gradient is summed within each, then over the blocks. There are as many as
// keep a large GPU busy.
struct RowBlocks {
  int64_t size, count;
};
inline RowBlocks row_blocks(int64_t rows, int64_t least = 32, int64_t most = 512) {
  const int64_t size = std::max(least, (rows + most - 1) / most);
  return {size, (rows + size - 1) / size};
}
// For norms, whose rows are few and long: 256 rows in blocks of 32 would keep only 8 multiprocessors busy.
inline RowBlocks layer_norm_blocks(int64_t rows) { return row_blocks(rows, 4); }
// Blocks of the backward of rms_norm read without a pause: one for each multiprocessor is enough, and leaves
// fewer partial sums.
inline RowBlocks norm_blocks(int64_t rows) { return row_blocks(rows, 4, 128); }

// f(0) + ... + f(n-1) in lanes that a compiler turns into vectors, folded as a tree: the same sum at any
// vector width, and a smaller error than one running sum.
template <class A, class F>
A row_sum(int64_t n, F f) {
  constexpr int kLanes = 32;
  A lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) lanes[l] += f(i + l);
  }
  for (int l = 0; i < n; ++i, ++l) lanes[l] += f(i);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

// The largest of f(0) ... f(n-1); -infinity if n is 0. NaN is skipped.
template <class A, class F>
A row_max(int64_t n, F f) {
  constexpr int kLanes = 32;
  A lanes[kLanes];
  std::fill_n(lanes, kLanes, -std::numeric_limits<A>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) {
      const A value = f(i + l);
      lanes[l] = value > lanes[l] ? value : lanes[l];
    }
  }
  for (int l = 0; i < n; ++i, ++l) lanes[l] = std::max(lanes[l], A(f(i)));
  return *std::max_element(lanes, lanes + kLanes);
}

}  // namespace weft
