#pragma once
// What the CPU's scans share that go chunk by chunk over one head (linear_run_cpu.cpp, delta_run_cpu.cpp):
// rows of tokens as dense tiles and back, products of tiles, states.

#include <algorithm>
#include <limits>

#include "autograd/ops/gemm_kernel.h"
#include "autograd/ops/rows.h"

namespace weft::cpu {

// Of decays. Numbers below the normal ones are 0: some processors take a hundred times as long for them.
template <class W>
W decay_product(W a, W b) {
  const W y = a * b;
  return y < std::numeric_limits<W>::min() ? W(0) : y;
}

// c (m, n) = alpha a (m, k) b (k, n) + beta c, all of it dense
template <class W>
void put_product(W* c, MatrixView<W> a, MatrixView<W> b, int64_t m, int64_t n, int64_t k, W alpha = 1,
                 W beta = 0) {
  multiply(Product<W, W, W>{c, n, a, b, m, n, k, alpha, beta});
}

// n tokens of a head of x (N, H, D).
struct HeadRows {
  int64_t head, first, n;
};
template <class T, class W>
void read_rows(W* to, const Tensor& x, const HeadRows& rows, W scale = 1) {
  const int64_t width = x.dim(2), pitch = x.pitch();
  const T* from = x.data<T>() + rows.first * pitch + rows.head * width;
  for (int64_t i = 0; i < rows.n; ++i, from += pitch, to += width)
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) to[c] = scale * static_cast<W>(from[c]);
}
template <class T, class W>
void write_rows(const Tensor& x, const W* from, const HeadRows& rows, W scale = 1) {
  const int64_t width = x.dim(2), pitch = x.pitch();
  T* to = x.data<T>() + rows.first * pitch + rows.head * width;
  for (int64_t i = 0; i < rows.n; ++i, from += width, to += pitch)
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) store(to[c], scale * from[c]);
}

// The state of a segment and head in (segments, H, Dk, Dv), if there are such.
template <class W>
W* state_in(const Tensor& states, int64_t segment, int64_t head) {
  if (!states.defined()) return nullptr;
  return states.data<W>() + (segment * states.dim(1) + head) * states.dim(2) * states.dim(3);
}

// to = from, or zero
template <class W>
void copy_state(W* to, const W* from, int64_t n) {
  if (from == nullptr)
    std::fill_n(to, n, W(0));
  else
    std::copy_n(from, n, to);
}

}  // namespace weft::cpu
