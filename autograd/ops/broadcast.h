#pragma once
// Strides with which the operands of a broadcast follow its output, for kernels of any device.

#include <array>

#include "autograd/shape.h"

namespace weft {

// One stride for each dimension, 0 where an operand stretches. Dimensions that both operands can walk as one
// are merged, so that most cases become one or two loops.
struct Walk {
  int rank = 0;
  std::array<int64_t, Shape::kMaxRank> extent{}, a{}, b{};

  void push(int64_t n, int64_t step_a, int64_t step_b) {
    const int last = rank - 1;
    if (rank > 0 && a[last] == step_a * n && b[last] == step_b * n) {
      extent[last] *= n;
      a[last] = step_a;
      b[last] = step_b;
      return;
    }
    extent[rank] = n;
    a[rank] = step_a;
    b[rank] = step_b;
    ++rank;
  }
  // Neither stretches: element i of each.
  bool together() const { return rank == 1 && a[0] == 1 && b[0] == 1; }
};

// Strides of x along the dimensions of an output.
inline std::array<int64_t, Shape::kMaxRank> strides_along(const Shape& out, const Shape& x) {
  std::array<int64_t, Shape::kMaxRank> stride{};
  int64_t step = 1;
  for (int i = out.rank() - 1, j = x.rank() - 1; i >= 0; --i, --j) {
    stride[i] = j >= 0 && x[j] != 1 ? step : 0;
    if (j >= 0) step *= x[j];
  }
  return stride;
}

inline Walk walk_of(const Shape& out, const Shape& a, const Shape& b) {
  const auto sa = strides_along(out, a), sb = strides_along(out, b);
  Walk w;
  for (int i = 0; i < out.rank(); ++i)
    if (out[i] != 1) w.push(out[i], sa[i], sb[i]);
  if (w.rank == 0) w.push(1, 1, 1);
  return w;
}

// Sums `from` to a shape it was stretched from: `kept` walks the output, `gone` the `count` elements that
// are summed into one of its elements; both as offsets in `from`.
struct Summation {
  Walk kept, gone;
  int64_t count = 1;
};

inline Summation summation_of(const Shape& to, const Shape& from) {
  const auto step = strides_along(from, from), stays = strides_along(from, to);
  Summation s;
  for (int i = 0; i < from.rank(); ++i) {
    if (from[i] == 1) continue;
    if (stays[i] != 0) {
      s.kept.push(from[i], step[i], 0);
    } else {
      s.gone.push(from[i], step[i], 0);
      s.count *= from[i];
    }
  }
  return s;
}

}  // namespace weft
