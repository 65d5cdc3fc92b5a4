// Compiled for two instruction sets: instruction_set.h says what may not stand here.

#include "autograd/ops/gemm_kernel.h"
#include "autograd/ops/instruction_set.h"

namespace weft::cpu::WEFT_INSTRUCTIONS {
namespace {

// A tile is kRows x 2 vectors of sums; with the operands they fill the registers (16 of AVX2), or are enough
// to hide the latency (32 of AVX-512), where 8 divides the sizes that models have.
#ifdef __AVX512F__
constexpr int kRows = 8;
#else
constexpr int kRows = 6;
#endif
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
template <class T>
constexpr int kColumns = 2 * kLanes<T>;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

double widen(double x) { return x; }
float widen(float x) { return x; }
float widen(bf16 x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16); }

// What a tile of c is the product of, a panel of a (kRows, k) and one of b (k, kColumns), packed or where
// they lie: a(i, p) = a[i * a_row + p * a_column], b(p, j) = b[p * b_row + j].
template <class T>
struct Panels {
  const T *a, *b;
  int64_t a_row, a_column, b_row;
};

// c (kRows, kVectors vectors) = alpha times the product of two panels + beta c
template <int kVectors, class T>
void multiply_panels(int64_t k, const Panels<T>& x, T* c, int64_t pitch, T alpha, T beta) {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  Vector sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[i][v] = Vector{};
  const T *a = x.a, *b = x.b;
  for (int64_t p = 0; p < k; ++p, a += x.a_column, b += x.b_row) {
    Vector row[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) __builtin_memcpy(&row[v], b + v * kLanes<T>, kVectorBytes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] += a[i * x.a_row] * row[v];
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      T* to = c + i * pitch + v * kLanes<T>;
      Vector y = alpha * sum[i][v];
      if (beta != 0) {
        Vector before;
        __builtin_memcpy(&before, to, kVectorBytes);
        y += beta * before;
      }
      __builtin_memcpy(to, &y, kVectorBytes);
    }
}

// The same for a tile that sticks out of c: only `rows` and `columns` of it are there.
template <class T>
void multiply_edge(int64_t k, const Panels<T>& x, T* c, int64_t pitch, int64_t rows, int64_t columns, T alpha,
                   T beta) {
  T whole[kRows * kColumns<T>];
  if (beta != 0)
    for (int64_t i = 0; i < kRows; ++i)
      for (int64_t j = 0; j < kColumns<T>; ++j)
        whole[i * kColumns<T> + j] = i < rows && j < columns ? c[i * pitch + j] : T(0);
  if (columns <= kLanes<T>)
    multiply_panels<1>(k, x, whole, kColumns<T>, alpha, beta);
  else
    multiply_panels<2>(k, x, whole, kColumns<T>, alpha, beta);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) c[i * pitch + j] = whole[i * kColumns<T> + j];
}

// to(j, i) = from(i, j) for a square of four; rows of `to` and `from` are so far apart.
template <class T, class X>
void transpose_square(T* to, int64_t to_row, const X* from, int64_t from_row) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  Four in[4], out[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const X* x = from + i * from_row;
    if constexpr (sizeof(X) == sizeof(T))
      __builtin_memcpy(&in[i], x, sizeof(Four));
    else
      in[i] = Four{widen(x[0]), widen(x[1]), widen(x[2]), widen(x[3])};
  }
  const Four a = __builtin_shufflevector(in[0], in[1], 0, 4, 1, 5),
             b = __builtin_shufflevector(in[2], in[3], 0, 4, 1, 5);
  const Four c = __builtin_shufflevector(in[0], in[1], 2, 6, 3, 7),
             d = __builtin_shufflevector(in[2], in[3], 2, 6, 3, 7);
  out[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  out[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  out[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
  out[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) __builtin_memcpy(to + i * to_row, &out[i], sizeof(Four));
}

// Rows of x (n, k) into panels of `width` rows each, (k, width), zero behind the last.
template <int width, class T, class X>
void pack(T* to, MatrixView<X> x, int64_t n, int64_t k) {
  for (int64_t first = 0; first < n; first += width, to += width * k) {
    const X* from = x.data + first * x.row;
    const int64_t rows = least(width, n - first);
    if (rows == width && x.row == 1) {
      for (int64_t p = 0; p < k; ++p)
        for (int i = 0; i < width; ++i) to[p * width + i] = widen(from[p * x.column + i]);
      continue;
    }
    if (x.row == 1) {
      for (int64_t p = 0; p < k; ++p)
        for (int i = 0; i < width; ++i) to[p * width + i] = i < rows ? widen(from[p * x.column + i]) : T(0);
      continue;
    }
    const int64_t squares = x.column == 1 ? rows / 4 * 4 : 0, depth = k / 4 * 4;
    for (int64_t i = 0; i < squares; i += 4)
      for (int64_t p = 0; p < depth; p += 4)
        transpose_square(to + p * width + i, width, from + i * x.row + p, x.row);
    for (int64_t i = 0; i < width; ++i)
      for (int64_t p = i < squares ? depth : 0; p < k; ++p)
        to[p * width + i] = i < rows ? widen(from[i * x.row + p * x.column]) : T(0);
  }
}

// c (m, n) += or = the product of a (m, k) by b (k, n) whose columns lie in one piece, as the rows of a
// weight do. Rows of c are the lanes of vectors: a few fill them, and b, which is read once, is read where it
// lies, so many columns at once: their sums fill half of the registers, or all.
template <int kVectors, int kAtOnce, class T>
void multiply_by_rows(int64_t m, int64_t n, int64_t k, const T* a, const T* b, int64_t b_column, T* c,
                      int64_t pitch, bool add) {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  for (int64_t j = 0; j < n; j += kAtOnce) {
    const int64_t columns = least(kAtOnce, n - j);
    const T* from[kAtOnce];  // behind the last, the last again
    for (int i = 0; i < kAtOnce; ++i) from[i] = b + (j + least(i, columns - 1)) * b_column;
    Vector sum[kAtOnce][kVectors];
#pragma GCC unroll 16
    for (int i = 0; i < kAtOnce; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] = Vector{};
    const T* row = a;
    for (int64_t p = 0; p < k; ++p, row += kVectors * kLanes<T>) {
      Vector x[kVectors];
      __builtin_memcpy(x, row, sizeof x);
#pragma GCC unroll 16
      for (int i = 0; i < kAtOnce; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[i][v] += from[i][p] * x[v];
    }
    T turned[kAtOnce][kVectors * kLanes<T>];
    __builtin_memcpy(turned, sum, sizeof turned);
    const int64_t whole = columns == kAtOnce && !add ? m / 4 * 4 : 0;
    for (int64_t i = 0; i < whole; i += 4)
      for (int64_t e = 0; e < kAtOnce; e += 4)
        transpose_square(c + i * pitch + j + e, pitch, &turned[e][i], kVectors * kLanes<T>);
    for (int64_t i = whole; i < m; ++i) {
      T* to = c + i * pitch + j;
      for (int64_t e = 0; e < columns; ++e) to[e] = add ? turned[e][i] + to[e] : turned[e][i];
    }
  }
}

// Whether x lies within 32 KiB from end to end, so that nothing of it is pushed out of the first cache by
// more of it before it is read again.
template <class X>
bool is_small(MatrixView<X> x, int64_t rows, int64_t columns) {
  return rows * x.row + columns * x.column <= 32768 / static_cast<int64_t>(sizeof(X));
}

}  // namespace

template <class T, class A, class B>
void multiply(Product<T, A, B> x, T* space) {
  // By a weight's rows: alpha and beta that change no bit of a sum.
  if constexpr (sizeof(T) == sizeof(B))
    if (x.b.row == 1 && x.b.column != 1 && x.m <= kColumns<T> && x.alpha == 1 &&
        (x.beta == 0 || x.beta == 1)) {
      T* const panel = space + (-reinterpret_cast<uintptr_t>(space) % 64) / sizeof(T);
      for (int64_t p = 0; p < x.k || p == 0; p += kPackDepth, x.beta = 1) {
        const int64_t depth = least(kPackDepth, x.k - p);
        const MatrixView<A> rows{x.a.data + p * x.a.column, x.a.row, x.a.column};
        const B* const b = x.b.data + p;
        if (x.m <= kLanes<T>) {
          pack<kLanes<T>>(panel, rows, x.m, depth);
          if (kVectorBytes == 64 && x.n % 16 == 0)
            multiply_by_rows<1, 16>(x.m, x.n, depth, panel, b, x.b.column, x.c, x.pitch, x.beta == 1);
          else
            multiply_by_rows<1, 8>(x.m, x.n, depth, panel, b, x.b.column, x.c, x.pitch, x.beta == 1);
        } else {
          pack<kColumns<T>>(panel, rows, x.m, depth);
          multiply_by_rows<2, kVectorBytes / 8>(x.m, x.n, depth, panel, b, x.b.column, x.c, x.pitch,
                                                x.beta == 1);
        }
      }
      return;
    }
  // Whole panels of a that lie close together are read where they lie, and so are those of a small b, or of
  // any b for a few rows of c: packing would take longer than it saves.
  constexpr bool same_a = sizeof(T) == sizeof(A), same_b = sizeof(T) == sizeof(B);
  const bool direct_a = same_a && is_small(x.a, kRows, x.k);
  const bool direct_b = same_b && x.b.column == 1 && (x.m <= 4 * kRows || is_small(x.b, x.k, x.n));
  T* const panel = space + (-reinterpret_cast<uintptr_t>(space) % 64) / sizeof(T);
  T* const block = panel + 16 * kPackDepth;  // both begin at a cache line
  for (int64_t p = 0; p < x.k || p == 0; p += kPackDepth, x.beta = 1) {
    const int64_t depth = least(kPackDepth, x.k - p);
    for (int64_t across = 0; across < x.n; across += kPackWidth) {
      const int64_t width = least(kPackWidth, x.n - across);
      const B* const corner = x.b.data + p * x.b.row + across * x.b.column;
      const int64_t rest = width % kColumns<T> == kLanes<T> ? 0 : width % kColumns<T>,
                    whole = direct_b ? width - rest : 0;
      pack<kColumns<T>>(block + whole * depth,
                        MatrixView<B>{corner + whole * x.b.column, x.b.column, x.b.row}, width - whole,
                        depth);
      for (int64_t i = 0; i < x.m; i += kRows) {
        const int64_t rows = least(kRows, x.m - i);
        const MatrixView<A> strip{x.a.data + i * x.a.row + p * x.a.column, x.a.row, x.a.column};
        Panels<T> panels{panel, block, 1, kRows, kColumns<T>};
        if constexpr (same_a)
          if (direct_a && rows == kRows) panels = {strip.data, block, strip.row, strip.column, kColumns<T>};
        if (panels.a == panel) pack<kRows>(panel, strip, rows, depth);
        for (int64_t j = 0; j < width; j += kColumns<T>) {
          const int64_t columns = least(kColumns<T>, width - j);
          T* to = x.c + i * x.pitch + across + j;
          panels.b = block + j * depth, panels.b_row = kColumns<T>;
          if constexpr (same_b)
            if (j < whole) panels.b = corner + j, panels.b_row = x.b.row;
          if (rows == kRows && columns == kColumns<T>)
            multiply_panels<2>(depth, panels, to, x.pitch, x.alpha, x.beta);
          else if (rows == kRows && columns == kLanes<T>)
            multiply_panels<1>(depth, panels, to, x.pitch, x.alpha, x.beta);
          else
            multiply_edge(depth, panels, to, x.pitch, rows, columns, x.alpha, x.beta);
        }
      }
    }
  }
}

template <class T, class X>
void transpose(T* to, int64_t to_row, MatrixView<X> x, int64_t n, int64_t k) {
  const int64_t rows = x.column == 1 ? n / 4 * 4 : 0, columns = k / 4 * 4;
  for (int64_t i = 0; i < rows; i += 4)
    for (int64_t p = 0; p < columns; p += 4)
      transpose_square(to + p * to_row + i, to_row, x.data + i * x.row + p, x.row);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t p = i < rows ? columns : 0; p < k; ++p)
      to[p * to_row + i] = widen(x.data[i * x.row + p * x.column]);
}

template void transpose(double*, int64_t, MatrixView<double>, int64_t, int64_t);
template void transpose(float*, int64_t, MatrixView<float>, int64_t, int64_t);
template void transpose(float*, int64_t, MatrixView<bf16>, int64_t, int64_t);
template void multiply(Product<double, double, double>, double*);
template void multiply(Product<float, float, float>, float*);
template void multiply(Product<float, float, bf16>, float*);
template void multiply(Product<float, bf16, float>, float*);
template void multiply(Product<float, bf16, bf16>, float*);

}  // namespace weft::cpu::WEFT_INSTRUCTIONS
