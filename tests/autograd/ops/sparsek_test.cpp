#include "autograd/ops/sparsek.h"

#include <algorithm>

#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

Function operator_of(int64_t k) {
  return [=](const std::vector<Variable>& v) { return std::vector{sparsek(v[0], k)}; };
}

std::vector<double> row_of(const std::vector<double>& z, int64_t k) {
  return to_values(sparsek(from_values({1, std::ssize(z)}, Dtype::f64, z), k));
}

TEST(SparseK, ByHand) {
  EXPECT_EQ(row_of({10, 0, 0}, 1), (std::vector<double>{1, 0, 0}));
  EXPECT_EQ(row_of({0, 10, 0}, 2), (std::vector<double>{0.5, 1, 0.5}));
  EXPECT_EQ(row_of({1, 1, 1, 1}, 1), (std::vector<double>{0.25, 0.25, 0.25, 0.25}));
  EXPECT_EQ(row_of({0.5, 0}, 1), (std::vector<double>{0.75, 0.25}));
}

TEST(SparseK, FewScoresAreAllTaken) {
  EXPECT_EQ(row_of({3, -1e4, 7}, 3), (std::vector<double>{1, 1, 1}));
  EXPECT_EQ(row_of({3, -INFINITY, 7, -INFINITY}, 2), (std::vector<double>{1, 0, 1, 0}));
  EXPECT_EQ(row_of({-INFINITY, -INFINITY}, 1), (std::vector<double>{0, 0}));
  EXPECT_THROW(sparsek(random_tensor({2, 3}, 1), 0), Error);
}

TEST(SparseK, ExtremesAreFinite) {
  const std::vector<double> p = row_of({1e4, -1e4, 1e4, 1e4}, 2);
  EXPECT_NEAR(p[0] + p[1] + p[2] + p[3], 2, 1e-10);
  EXPECT_NEAR(p[0], 2.0 / 3, 1e-10);
}

// Sums to k inside the cube, and no point there is nearer: the optimality condition of a projection onto a
// convex set is <z - p, y - p> <= 0 for all its points y. The vertices, k ones each, are enough.
TEST(SparseK, IsTheProjection) {
  for (const int64_t k : {1, 2, 5, 11})
    for (const double spread : {0.1, 1.0, 10.0}) {
      const int64_t rows = 20, m = 12;
      const Tensor z = random_tensor({rows, m}, 7, Dtype::f64, spread);
      const std::vector<double> a = to_values(z), p = to_values(sparsek(z, k));
      for (int64_t i = 0; i < rows; ++i) {
        double sum = 0, inner = 0;
        std::vector<double> apart;
        for (int64_t j = i * m; j < (i + 1) * m; ++j) {
          EXPECT_GE(p[j], 0);
          EXPECT_LE(p[j], 1);
          sum += p[j];
          apart.push_back(a[j] - p[j]);
          inner += apart.back() * p[j];
        }
        EXPECT_NEAR(sum, static_cast<double>(k), 1e-10);
        std::sort(apart.begin(), apart.end(), std::greater<>());
        double best = 0;
        for (int64_t j = 0; j < k; ++j) best += apart[j];
        EXPECT_LE(best - inner, 1e-9) << "k " << k << ", spread " << spread;
      }
    }
}

// I - 11^T / |I| where 0 < p < 1, zero elsewhere, element by element.
TEST(SparseK, Jacobian) {
  const int64_t m = 9, k = 3;
  const Tensor z = random_tensor({1, m}, 3, Dtype::f64, 0.6);
  const std::vector<double> p = to_values(sparsek(z, k));
  const auto inside = [&](int64_t j) { return p[j] > 0 && p[j] < 1; };
  double count = 0;
  for (int64_t j = 0; j < m; ++j) count += inside(j);
  ASSERT_GE(count, 2);
  ASSERT_LT(count, m);
  for (int64_t i = 0; i < m; ++i) {
    Tape tape;
    const Variable leaf = tape.input(z);
    const Variable y = sparsek(leaf, k);
    std::vector<double> seed(static_cast<size_t>(m));
    seed[i] = 1;
    tape.backward(y, from_values({1, m}, Dtype::f64, seed));
    const std::vector<double> row = to_values(tape.gradient(leaf));
    for (int64_t j = 0; j < m; ++j) {
      const double expected = inside(i) && inside(j) ? (i == j) - 1 / count : 0;
      EXPECT_NEAR(row[j], expected, 1e-14) << i << " " << j;
    }
  }
}

// Scores that are more than 1 below those that fill the budget change nothing: tau only rises as scores are
// added, so a stream may forget what fell out.
TEST(SparseK, ThresholdOfAStreamOnlyRises) {
  const int64_t n = 60, k = 4;
  const std::vector<double> z = to_values(random_tensor({1, n}, 5, Dtype::f64, 2));
  const auto tau_of = [&](const std::vector<double>& scores) {
    const std::vector<double> p = row_of(scores, k);
    for (size_t j = 0; j < p.size(); ++j)
      if (p[j] > 0 && p[j] < 1) return scores[j] - p[j];
    return -static_cast<double>(INFINITY);
  };
  std::vector<double> seen, kept;
  double before = -INFINITY;
  for (int64_t t = 0; t < n; ++t) {
    seen.push_back(z[t]);
    kept.push_back(z[t]);
    const double batch = tau_of(seen), stream = tau_of(kept);
    if (std::isinf(batch)) continue;
    EXPECT_NEAR(stream, batch, 1e-12) << t;
    EXPECT_GE(batch, before - 1e-12);
    before = batch;
    std::erase_if(kept, [&](double score) { return score <= stream; });
  }
  EXPECT_LT(kept.size(), seen.size());
}

TEST(SparseK, Gradients) {
  expect_op(operator_of(1), {random_tensor({5, 7}, 1)});
  expect_op(operator_of(3), {random_tensor({2, 3, 8}, 1)});
  expect_op(operator_of(4), {random_tensor({3, 4}, 1)});
  expect_op(operator_of(2), {random_tensor({0, 5}, 1)});
  expect_same_bits_on_threads(operator_of(5), {random_tensor({300, 40}, 1)});
}

}  // namespace
}  // namespace weft
