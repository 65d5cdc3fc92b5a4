// Products of a few rows with what stands around them, against the ops one by one in f64; on the default
// device.

#include "autograd/ops/few_rows.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/gradcheck.h"
#include "tests/tolerances.h"

namespace weft {
namespace {

struct ProductCase {
  int64_t rows, n, k;
  bool norm, gain, swiglu, residual;
  int64_t norm_size = 0;
  int64_t normed() const { return norm_size > 0 ? norm_size : k; }
};

// Row by row; o is rounded where the ops round.
std::vector<double> by_hand(const ProductCase& c, const Tensor& x, const Tensor& w, const Tensor& gain,
                            const Tensor& residual, Dtype dtype) {
  const auto rounded = [&](double v) {
    return dtype == Dtype::bf16 ? static_cast<double>(bf16(static_cast<float>(v))) : v;
  };
  const std::vector<double> X = to_values(x), W = to_values(w);
  const std::vector<double> G = gain.defined() ? to_values(gain) : std::vector<double>{},
                            R = residual.defined() ? to_values(residual) : std::vector<double>{};
  const int64_t columns = c.swiglu ? c.n / 2 : c.n;
  std::vector<double> y;
  for (int64_t r = 0; r < c.rows; ++r) {
    std::vector<double> row(X.begin() + r * c.k, X.begin() + (r + 1) * c.k);
    for (int64_t head = 0; c.norm && head < c.k; head += c.normed()) {
      double squares = 0;
      for (int64_t j = 0; j < c.normed(); ++j) squares += row[head + j] * row[head + j];
      const double s = 1 / std::sqrt(squares / static_cast<double>(c.normed()) + 1e-6);
      for (int64_t j = 0; j < c.normed(); ++j)
        row[head + j] = rounded(row[head + j] * s * (c.gain ? G[j] : 1));
    }
    const auto product = [&](int64_t i) {
      double sum = 0;
      for (int64_t j = 0; j < c.k; ++j) sum += row[j] * W[i * c.k + j];
      return rounded(sum);
    };
    for (int64_t i = 0; i < columns; ++i) {
      double v = product(i);
      if (c.swiglu) v = rounded(v / (1 + std::exp(-v)) * product(columns + i));
      y.push_back(c.residual ? v + R[r * columns + i] : v);
    }
  }
  return y;
}

void expect_product(const ProductCase& c, Dtype dtype) {
  SCOPED_TRACE(text(name_of(dtype), ", ", c.rows, " rows of ", c.k, " by ", c.n, c.norm ? ", norm" : "",
                    c.gain ? ", gain" : "", c.swiglu ? ", swiglu" : "", c.residual ? ", residual" : ""));
  const NoTape pause;
  const double size = 1 / std::sqrt(static_cast<double>(c.k));
  const auto random = [&](const Shape& shape, double factor, uint32_t seed) {
    std::vector<double> v = to_values(random_tensor(shape, seed));
    for (double& e : v) e *= factor;
    return from_values(shape, Dtype::f64, v).to(dtype);
  };
  const Tensor wide = random({c.rows, c.k + 16}, 1, 1), x = wide.columns(8, c.k + 8);  // a view of columns
  const Tensor w = random({c.n, c.k}, size, 2);
  const Tensor gain = c.gain ? random_tensor({c.normed()}, 3).to(wide_of(dtype)) : Tensor();
  const Tensor residual = c.residual ? random({c.rows, c.swiglu ? c.n / 2 : c.n}, 1, 4) : Tensor();
  const Around around{.norm = c.norm,
                      .norm_size = c.norm_size,
                      .gain = gain,
                      .eps = 1e-6,
                      .swiglu = c.swiglu,
                      .residual = residual};
  const bool here = default_device() == Device::cuda && dtype == Dtype::bf16 && c.rows <= 16 &&
                    c.k % 8 == 0 && c.k <= (c.norm ? 2048 : 16384) && c.norm_size % 64 == 0;
  EXPECT_EQ(few_rows_fused(x, w, around), here);
  const Tensor y = few_rows_linear(x, w, around);
  const Tensor expected =
      from_values(y.shape(), Dtype::f64, by_hand(c, x.contiguous(), w, gain, residual, dtype));
  EXPECT_LE(largest_difference(y.to(Dtype::f64), expected), tolerance::of(dtype));
  if (!c.swiglu && !c.residual) {
    Around unrounded = around;
    unrounded.wide = true;
    const Tensor z = few_rows_linear(x, w, unrounded);
    EXPECT_EQ(z.dtype(), wide_of(dtype));
    EXPECT_LE(largest_difference(z.to(Dtype::f64), expected), tolerance::of(dtype));
    if (here) {
      EXPECT_EQ(largest_difference(z.to(dtype).to(Dtype::f64), y.to(Dtype::f64)), 0);
    }
  }
  if (!here) return;
  // The last row alone has the same bits.
  Around alone = around;
  if (c.residual) alone.residual = residual.rows(c.rows - 1, c.rows);
  const Tensor last = few_rows_linear(x.rows(c.rows - 1, c.rows), w, alone);
  EXPECT_EQ(largest_difference(last.to(Dtype::f64), y.rows(c.rows - 1, c.rows).to(Dtype::f64)), 0);
}

TEST(FewRows, IsTheOpsOneByOne) {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
    for (const int64_t rows : {1, 2, 7, 8, 9, 15, 16, 17}) {
      expect_product({rows, 50, 72, false, false, false, false}, dtype);
      expect_product({rows, 50, 72, true, true, true, true}, dtype);
    }
    expect_product({3, 1, 8, true, false, false, true}, dtype);
    expect_product({5, 2, 8, false, false, true, false}, dtype);
    expect_product({4, 33, 12, true, true, false, true}, dtype);  // no whole packs
    expect_product({2, 6, 2056, true, true, true, false}, dtype);
    expect_product({3, 20, 384, true, true, false, true, 128}, dtype);  // heads
    expect_product({10, 20, 1024, true, false, false, true, 64}, dtype);
    expect_product({2, 20, 192, true, true, false, true, 48}, dtype);
  }
}

TEST(FewRows, ManyUnitsAndLongRows) {
  expect_product({16, 2200, 136, true, true, true, true}, Dtype::bf16);
  expect_product({16, 150, 2048, true, true, false, false}, Dtype::bf16);
  expect_product({3, 2200, 2048, false, false, false, true}, Dtype::bf16);
  for (const int64_t k : {2056, 4096, 5504, 9000, 16384}) {  // k shared out in a cluster
    expect_product({16, 40, k, false, false, false, true}, Dtype::bf16);
    expect_product({1, 20, k, false, false, true, true}, Dtype::bf16);
  }
  expect_product({9, 1200, 2120, false, false, false, true}, Dtype::bf16);
}

}  // namespace
}  // namespace weft
