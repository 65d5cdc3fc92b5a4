// Tiles of softmax weights and their way back against plain loops in f64, on every instruction set that this
// processor has.

#include "attention/softmax_tile.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "autograd/ops/instruction_set.h"
#include "autograd/philox.h"
#include "tests/autograd/test_tensors.h"

namespace weft::cpu {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

template <class W>
std::vector<W> normal_numbers(int64_t n, uint32_t stream) {
  std::vector<W> x;
  for (int64_t i = 0; i < n; ++i)
    x.push_back(static_cast<W>(3 * RandomKey{1, stream}.normal(static_cast<uint64_t>(i))));
  return x;
}

template <class W>
bool same_bits(const std::vector<W>& a, const std::vector<W>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(W)) == 0;
}

template <class W>
void near(const std::vector<W>& got, const std::vector<double>& wanted) {
  const double unit = sizeof(W) == 4 ? 1e-6 : 1e-14;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i] == kNever)
      ASSERT_EQ(static_cast<double>(got[i]), kNever) << i;
    else
      ASSERT_NEAR(static_cast<double>(got[i]), wanted[i], unit * (1 + std::abs(wanted[i]))) << i;
  }
}

// What a tile of the way out reads and writes.
template <class W>
struct Running {
  std::vector<W> s, acc, peak, sum;
  int64_t rows, columns, width;

  SoftmaxTile<W> tile() { return {s.data(), acc.data(), peak.data(), sum.data(), rows, columns, width}; }
  bool operator==(const Running& other) const {
    return same_bits(s, other.s) && same_bits(acc, other.acc) && same_bits(peak, other.peak) &&
           same_bits(sum, other.sum);
  }
};

// Rows by turns: ordinary, of a peak that stays, with nothing seen before, with nothing to see, neither.
template <class W>
Running<W> made(int64_t rows, int64_t columns, int64_t width) {
  const W never = static_cast<W>(kNever);
  Running<W> x{normal_numbers<W>(rows * columns, 1),
               normal_numbers<W>(rows * width, 2),
               normal_numbers<W>(rows, 3),
               std::vector<W>(rows, W(2)),
               rows,
               columns,
               width};
  for (int64_t i = 0; i < rows; ++i) {
    if (i % 5 == 1) x.peak[i] = 100;
    if (i % 5 == 2 || i % 5 == 4) {
      x.peak[i] = never, x.sum[i] = 0;
      std::fill_n(&x.acc[i * width], width, W(0));
    }
    for (int64_t j = 0; j < columns; ++j)
      if (i % 5 >= 3 || j % 7 == i % 7) x.s[i * columns + j] = never;
  }
  return x;
}

template <class W>
void check_forward(int64_t rows, int64_t columns, int64_t width) {
  SCOPED_TRACE(testing::Message() << rows << "x" << columns << "x" << width);
  const Running<W> before = made<W>(rows, columns, width);
  std::vector<double> s, acc, peak, sum;
  for (int64_t i = 0; i < rows; ++i) {
    const auto old = static_cast<double>(before.peak[i]);
    double top = old, total = 0;
    for (int64_t j = 0; j < columns; ++j) top = std::max(top, static_cast<double>(before.s[i * columns + j]));
    const double shift = top == kNever ? 0 : top, shrink = std::exp(old - shift);
    for (int64_t j = 0; j < columns; ++j) {
      s.push_back(std::exp(static_cast<double>(before.s[i * columns + j]) - shift));
      total += s.back();
    }
    for (int64_t j = 0; j < width; ++j)
      acc.push_back(shrink * static_cast<double>(before.acc[i * width + j]));
    peak.push_back(top);
    sum.push_back(shrink * static_cast<double>(before.sum[i]) + total);
  }
  Running<W> base = before;
  base::softmax_tile(base.tile());
  near(base.s, s);
  near(base.acc, acc);
  near(base.peak, peak);
  near(base.sum, sum);
#ifdef __x86_64__
  if (!has_avx512()) return;
  Running<W> wide = before;
  avx512::softmax_tile(wide.tile());
  EXPECT_TRUE(wide == base) << "the instruction sets differ";
#endif
}

template <class W>
void check_backward(int64_t rows, int64_t columns) {
  SCOPED_TRACE(testing::Message() << rows << "x" << columns);
  const Running<W> x = made<W>(rows, columns, 1);
  const std::vector<W> lse = normal_numbers<W>(rows, 4), delta = normal_numbers<W>(rows, 5),
                       gradient = normal_numbers<W>(rows * columns, 6);
  std::vector<double> p, ds;
  for (int64_t i = 0; i < rows * columns; ++i) {
    const int64_t row = i / columns;
    p.push_back(std::exp(static_cast<double>(x.s[i]) - static_cast<double>(lse[row])));
    ds.push_back(0.25 * p.back() * (static_cast<double>(gradient[i]) - static_cast<double>(delta[row])));
  }
  std::vector<W> p_base = x.s, ds_base = gradient;
  base::softmax_gradient_tile<W>(
      {p_base.data(), ds_base.data(), lse.data(), delta.data(), rows, columns, W(0.25)});
  near(p_base, p);
  near(ds_base, ds);
#ifdef __x86_64__
  if (!has_avx512()) return;
  std::vector<W> p_wide = x.s, ds_wide = gradient;
  avx512::softmax_gradient_tile<W>(
      {p_wide.data(), ds_wide.data(), lse.data(), delta.data(), rows, columns, W(0.25)});
  EXPECT_TRUE(same_bits(p_wide, p_base) && same_bits(ds_wide, ds_base)) << "the instruction sets differ";
#endif
}

TEST(SoftmaxTile, IsTheSoftmaxInEqualBits) {
  for (const int64_t rows : {1, 7, 64, 70})
    for (const int64_t columns : {1, 15, 16, 37, 64}) {
      check_forward<float>(rows, columns, 33);
      check_forward<double>(rows, columns, 9);
      check_backward<float>(rows, columns);
      check_backward<double>(rows, columns);
    }
}

}  // namespace
}  // namespace weft::cpu
