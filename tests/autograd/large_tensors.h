#pragma once
// What tests of tensors of more than 2^31 elements share: an op over all rows at once beside the same op over
// some rows at a time, compared on the GPU. An index of 32 bits anywhere would show as rows that differ, and
// rows that nobody wrote as NaN.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "autograd/draw.h"
#include "autograd/ops/convert.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "tests/tolerances.h"
#ifdef WEFT_CUDA
#include "autograd/cuda/runtime.h"
#endif

namespace weft::large {

// Rows of kWidth elements: more than 2^32 of them, and the last rows fill no tile. kPiece: as many as are
// computed at a time.
constexpr int64_t kRows = (int64_t{1} << 20) + 77, kWidth = 4096, kPiece = int64_t{1} << 17;

// Whether so many GiB of a GPU were free when this was asked first; later this program's own arena has them.
inline bool room(int64_t gib) {
#ifdef WEFT_CUDA
  if (default_device() != Device::cuda) return false;
  static const size_t at_first = [] {
    size_t free = 0, all = 0;
    CUDA_CHECK(cudaMemGetInfo(&free, &all));
    return free;
  }();
  return at_first >= static_cast<size_t>(gib) << 30;
#else
  static_cast<void>(gib);
  return false;
#endif
}
#define NEEDS_GPU_MEMORY(gib) \
  if (!large::room(gib)) GTEST_SKIP() << "needs a GPU with " << (gib) << " GiB of free memory"

// Uniform in [middle - spread, middle + spread).
inline Tensor noise(const Shape& shape, Dtype dtype, uint32_t seed, double spread = 1, double middle = 0) {
  const Tensor x = empty(shape, dtype);
  ON_DEVICE(x.device(), draw(x, Spread::uniform, spread, {seed, stream_of("large")}));
  return middle == 0 ? x : scale(x, 1, middle).value();
}

// Numbers 0, 1, ... f(i) as i32.
template <class F>
Tensor numbers(int64_t count, F f) {
  std::vector<int32_t> all(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) all[static_cast<size_t>(i)] = static_cast<int32_t>(f(i));
  return from_ints(all);
}

// The worst row's |a - b| over the root mean square of b's rows; not a number where any element is not.
inline double apart(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.shape(), b.shape());
  if (!(a.shape() == b.shape()) || a.numel() == 0) return a.shape() == b.shape() ? 0 : INFINITY;
  const int64_t rows = a.dim(0), width = a.numel() / rows;
  const int64_t at_once = std::max<int64_t>(1, (int64_t{1} << 28) / width);
  double worst = 0, all = 0;
  for (int64_t begin = 0; begin < rows; begin += at_once) {
    const int64_t end = std::min(rows, begin + at_once);
    const auto part = [&](const Tensor& x) {
      return Variable(x.rows(begin, end).to(Dtype::f32).contiguous().reshape({end - begin, width}));
    };
    const Variable x = part(a), y = part(b);
    for (const double of_row : to_values(sum(square(subtract(x, y)), 1)))
      if (!(of_row <= worst)) worst = of_row;  // and stays not a number
    for (const double of_row : to_values(sum(square(y), 1))) all += of_row;
    if (std::isnan(worst)) return worst;
  }
  return worst == 0 ? 0 : std::sqrt(worst / (all / static_cast<double>(rows)));
}

// Of rows [begin, end) of inputs that are cut by rows, and of shared ones behind them.
using RowsOp = std::function<Variable(const std::vector<Variable>& x, int64_t begin, int64_t end)>;

struct Outcome {
  Tensor y;
  std::vector<Tensor> d;  // with y itself as the gradient that arrives
};
inline Outcome run_rows(const RowsOp& f, const std::vector<Tensor>& rows, const std::vector<Tensor>& shared,
                        int64_t begin, int64_t end) {
  Tape tape;
  std::vector<Variable> x;
  for (const Tensor& each : rows) x.push_back(tape.input(each.rows(begin, end)));
  for (const Tensor& each : shared) x.push_back(tape.input(each));
  const Variable y = f(x, begin, end);
  Outcome out{y.value(), {}};
  tape.backward(y, out.y);
  for (const Variable& each : x) out.d.push_back(tape.gradient(each));
  return out;
}

// Outputs and gradients of all rows beside those of `piece` rows at a time; gradients of what is shared
// beside their sum. tolerance: of rows, by `apart`.
inline void expect_pieces(const RowsOp& f, const std::vector<Tensor>& rows,
                          const std::vector<Tensor>& shared = {}, double tolerance = 0,
                          int64_t piece = kPiece) {
  const int64_t all = rows[0].dim(0);
  const Outcome whole = run_rows(f, rows, shared, 0, all);
  std::vector<Tensor> sums;
  for (const Tensor& each : shared) sums.push_back(zeros(each.shape(), Dtype::f32));
  for (int64_t begin = 0; begin < all; begin += piece) {
    const int64_t end = std::min(all, begin + piece);
    SCOPED_TRACE(testing::Message() << "rows from " << begin);
    const Outcome part = run_rows(f, rows, shared, begin, end);
    EXPECT_LE(apart(whole.y.rows(begin, end), part.y), tolerance) << "output";
    for (size_t i = 0; i < rows.size(); ++i)
      EXPECT_LE(apart(whole.d[i].rows(begin, end), part.d[i]), tolerance) << "gradient " << i;
    for (size_t i = 0; i < shared.size(); ++i)
      ON_DEVICE(sums[i].device(), accumulate(sums[i], part.d[rows.size() + i]));
    if (testing::Test::HasFailure()) return;
  }
  for (size_t i = 0; i < shared.size(); ++i)
    EXPECT_LE(apart(whole.d[rows.size() + i], sums[i]), tolerance::kLargeSums) << "gradient of shared " << i;
}

}  // namespace weft::large
