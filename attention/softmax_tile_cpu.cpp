// Compiled for two instruction sets: instruction_set.h says what may not stand here.

#include "attention/softmax_tile.h"

#include <cstddef>
#include <utility>

#include "autograd/ops/instruction_set.h"
#include "autograd/ops/vector_math.h"

namespace weft::cpu::WEFT_INSTRUCTIONS {
namespace {

constexpr int kParts = 64 / kVectorBytes;  // vectors that make up 64 bytes

template <class W>
struct Vector;
template <>
struct Vector<float> {
  typedef float Lanes __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Vector<double> {
  typedef double Lanes __attribute__((vector_size(kVectorBytes)));
};

struct Largest {
  template <class X>
  static void join(X& a, const X& b) {
    a = b > a ? b : a;
  }
};
struct Sum {
  template <class X>
  static void join(X& a, const X& b) {
    a += b;
  }
};

// Every lane joined with all others: with the one `Half` further, then with what is half as far, and so on.
template <class Join, size_t Half, class V, size_t... Lane>
V join_lanes(V x, std::index_sequence<Lane...> lanes) {
  if constexpr (Half == 0) {
    return x;
  } else {
    const V other = __builtin_shufflevector(x, x, static_cast<int>(Lane ^ Half)...);
    Join::join(x, other);
    return join_lanes<Join, Half / 2>(x, lanes);
  }
}

// `start` joined with all of row[0, n). What is joined with what is the same for all instruction sets:
// numbers 64 bytes apart first, then the halves of what that leaves, and so on.
template <class Join, class W>
W reduce(const W* row, int64_t n, W start) {
  using Lanes = typename Vector<W>::Lanes;
  constexpr int64_t kLanes = kVectorBytes / sizeof(W), kStep = kParts * kLanes;
  Lanes all[kParts];
#pragma GCC unroll 2
  for (int part = 0; part < kParts; ++part) all[part] = start - Lanes{};
  int64_t j = 0;
  for (; j + kStep <= n; j += kStep)
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      Lanes next;
      __builtin_memcpy(&next, row + j + part * kLanes, kVectorBytes);
      Join::join(all[part], next);
    }
  if constexpr (kParts == 2) Join::join(all[0], all[1]);
  W one = join_lanes<Join, kLanes / 2>(all[0], std::make_index_sequence<kLanes>())[0];
  for (; j < n; ++j) Join::join(one, row[j]);
  return one;
}

}  // namespace

// In three loops, each of which has many rows under way: one row after another would wait for its own largest
// score and its own exponentials.
template <class W>
void softmax_tile(const SoftmaxTile<W>& x) {
  constexpr int64_t kRows = 64;
  constexpr W never = -static_cast<W>(__builtin_inf());
  for (int64_t first = 0; first < x.rows; first += kRows) {
    const int64_t rows = x.rows - first < kRows ? x.rows - first : kRows;
    W *s = x.s + first * x.columns, *peaks = x.peak + first, *sums = x.sum + first;
    W shift[kRows], shrink[kRows];
    for (int64_t i = 0; i < rows; ++i) {
      const W peak = reduce<Largest>(s + i * x.columns, x.columns, peaks[i]);
      shift[i] = peak == never ? W(0) : peak;  // never: nothing seen so far
      shrink[i] = peaks[i];
      peaks[i] = peak;
    }
#pragma omp simd
    for (int64_t i = 0; i < rows; ++i) shrink[i] = vector_math::exp(shrink[i] - shift[i]);
    for (int64_t i = 0; i < rows; ++i) {
      W *row = s + i * x.columns, by = shift[i];
#pragma omp simd
      for (int64_t j = 0; j < x.columns; ++j) row[j] = vector_math::exp(row[j] - by);
    }
    for (int64_t i = 0; i < rows; ++i) {
      sums[i] = sums[i] * shrink[i] + reduce<Sum>(s + i * x.columns, x.columns, W(0));
      if (shrink[i] == 1) continue;
      W *acc = x.acc + (first + i) * x.width, by = shrink[i];
#pragma omp simd
      for (int64_t j = 0; j < x.width; ++j) acc[j] *= by;
    }
  }
}

template <class W>
void softmax_gradient_tile(const SoftmaxGradientTile<W>& x) {
  for (int64_t i = 0; i < x.rows; ++i) {
    W *p = x.p + i * x.columns, *ds = x.ds + i * x.columns;
    const W lse = x.lse[i], delta = x.delta[i], scale = x.scale;
#pragma omp simd
    for (int64_t j = 0; j < x.columns; ++j) {
      p[j] = vector_math::exp(p[j] - lse);
      ds[j] = scale * p[j] * (ds[j] - delta);
    }
  }
}

template void softmax_tile(const SoftmaxTile<float>&);
template void softmax_tile(const SoftmaxTile<double>&);
template void softmax_gradient_tile(const SoftmaxGradientTile<float>&);
template void softmax_gradient_tile(const SoftmaxGradientTile<double>&);

}  // namespace weft::cpu::WEFT_INSTRUCTIONS
