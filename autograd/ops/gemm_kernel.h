#pragma once
// The product of two matrices on one core (Goto & van de Geijn 2008). A block of b, packed into panels, stays
// in the L2 cache, a panel of a in the L1 cache, and a tile of sums in registers; small operands are read in
// place. gemm_kernel_cpu.cpp is compiled for two instruction sets (instruction_set.h).
//
// Every element is the same chain of fused multiply-adds wherever it lies in c: a product computed in pieces
// has the bits of the whole product, and so has the other instruction set.

#include <cstdint>

#include "autograd/dtype.h"

namespace weft::cpu {

// A matrix to read: x(i, j) = data[i * row + j * column].
template <class T>
struct MatrixView {
  const T* data;
  int64_t row, column;

  MatrixView from(int64_t i, int64_t j) const { return {data + i * row + j * column, row, column}; }
  MatrixView transposed() const { return {data, column, row}; }
};

// c (m, n) = alpha a (m, k) b (k, n) + beta c; rows of c are `pitch` apart. With beta = 0 the old c is not
// read. T, A, B: all double; or T float, and each of A and B float or bf16, which is widened when packed.
template <class T, class A, class B>
struct Product {
  T* c;
  int64_t pitch;
  MatrixView<A> a;
  MatrixView<B> b;
  int64_t m, n, k;
  T alpha, beta;
};

template <class T, class A, class B>
void multiply(const Product<T, A, B>& product);

// What multiply() calls. `space` holds kPackSpace elements.
constexpr int64_t kPackDepth = 256, kPackWidth = 512, kPackSpace = kPackDepth * (kPackWidth + 16) + 16;
namespace base {
template <class T, class A, class B>
void multiply(Product<T, A, B> product, T* space);
// to[p * to_row + i] = x(i, p) for x (n, k)
template <class T, class X>
void transpose(T* to, int64_t to_row, MatrixView<X> x, int64_t n, int64_t k);
}  // namespace base
namespace avx512 {
template <class T, class A, class B>
void multiply(Product<T, A, B> product, T* space);
}  // namespace avx512

}  // namespace weft::cpu
