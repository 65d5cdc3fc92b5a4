#include "autograd/ops/matmul.h"

#include <omp.h>

#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "tests/autograd/test_tensors.h"

namespace weft {
namespace {

double at(const std::vector<double>& x, int64_t columns, int64_t i, int64_t j, bool t, int64_t rows) {
  return t ? x[j * rows + i] : x[i * columns + j];
}

TEST(Matmul, EveryTransposeAgainstLoops) {
  const int64_t m = 5, n = 7, k = 3;
  for (const bool ta : {false, true})
    for (const bool tb : {false, true}) {
      const Tensor a = random_tensor(ta ? Shape{k, m} : Shape{m, k}, 1),
                   b = random_tensor(tb ? Shape{n, k} : Shape{k, n}, 2);
      const std::vector<double> va = to_values(a), vb = to_values(b);
      std::vector<double> expected(m * n);
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j)
          for (int64_t l = 0; l < k; ++l)
            expected[i * n + j] += at(va, k, i, l, ta, m) * at(vb, n, l, j, tb, k);
      const Tensor exact = from_values({m, n}, Dtype::f64, expected);
      for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16})
        EXPECT_LE(difference(matmul(a.to(dtype), b.to(dtype), {ta, tb}), exact), tolerance::of(dtype));
      const Function f = [=](const std::vector<Variable>& v) {
        return std::vector{matmul(v[0], v[1], {ta, tb})};
      };
      expect_gradients(f, {a, b});
      expect_gradients(f, {random_tensor(ta ? Shape{2, 3, k, m} : Shape{2, 3, m, k}, 3),
                           random_tensor(tb ? Shape{2, 3, n, k} : Shape{2, 3, k, n}, 4)});
    }
}

TEST(Matmul, SharedRightOperand) {
  expect_gradients([](const std::vector<Variable>& v) { return std::vector{matmul(v[0], v[1])}; },
                   {random_tensor({2, 3, 4}, 1), random_tensor({4, 5}, 2)});
  EXPECT_THROW(matmul(random_tensor({2, 3}, 1), random_tensor({4, 5}, 2)), Error);
}

TEST(Linear, GradientsWithBiasAndColumnViews) {
  const auto f = [](const std::vector<Variable>& v) { return std::vector{linear(v[0], v[1], v[2])}; };
  expect_gradients(f, {random_tensor({4, 3}, 1), random_tensor({6, 3}, 2), random_tensor({6}, 3)});
  expect_gradients(f, {random_tensor({2, 4, 3}, 1), random_tensor({6, 3}, 2), random_tensor({6}, 3)});
  const Tensor wide = random_tensor({4, 9}, 4), weight = random_tensor({5, 3}, 5);
  EXPECT_TRUE(same_bits(linear(wide.columns(3, 6), weight).value(),
                        linear(wide.columns(3, 6).contiguous(), weight).value()));
}

TEST(Linear, Bf16WeightGradientLandsInF32) {
  ParameterStore store(Dtype::bf16);
  const Parameter w = store.declare({"w", {8, 16}, ParameterKind::matrix, Initializer::normal(1)});
  store.commit();
  store.begin_step();
  const Tensor x = random_tensor({64, 16}, 1, Dtype::bf16), g = random_tensor({64, 8}, 2, Dtype::bf16);
  for (int pass = 0; pass < 2; ++pass) {
    Tape tape;
    tape.backward(linear(x, w), g);
  }
  const Tensor exact = scale(matmul(g.to(Dtype::f64), x.to(Dtype::f64), {true, false}), 2).value();
  EXPECT_EQ(w->gradient.dtype(), Dtype::f32);
  EXPECT_LE(difference(w->gradient, exact), tolerance::of(Dtype::f32));
}

TEST(Matmul, BitsDoNotDependOnTheNumberOfThreads) {
  for (const Shape& shape : {Shape{130, 700}, Shape{1, 300}, Shape{513, 257}})
    for (const bool transposed : {false, true}) {
      const Tensor a =
          random_tensor(transposed ? Shape{1000, shape[0]} : Shape{shape[0], 1000}, 1, Dtype::f32);
      const Tensor b =
          random_tensor(transposed ? Shape{shape[1], 1000} : Shape{1000, shape[1]}, 2, Dtype::f32);
      const int threads = omp_get_max_threads();
      omp_set_num_threads(1);
      const Tensor one = matmul(a, b, {transposed, transposed});
      omp_set_num_threads(3);
      const Tensor three = matmul(a, b, {transposed, transposed});
      omp_set_num_threads(threads);
      EXPECT_TRUE(same_bits(one, three)) << shape;
      EXPECT_LE(difference(one, matmul(a.to(Dtype::f64), b.to(Dtype::f64), {transposed, transposed})), 1e-3);
    }
}

// Decoding multiplies one row at a time, by another loop than the rest.
TEST(Gemm, OneRowEqualsTheRowOfMany) {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16})
    for (const bool transposed : {false, true})
      for (const double beta : {0.0, -0.5}) {
        const Dtype wide = wide_of(dtype);
        const Tensor rows = random_tensor({3, 70}, 1, dtype);
        const Tensor b = random_tensor(transposed ? Shape{40, 90} : Shape{70, 50}, 2, dtype);
        const Tensor part = transposed ? b.columns(10, 80) : b.columns(5, 45);  // with a pitch
        const auto start = [&] {
          return beta == 0 ? full({3, 40}, NAN, wide) : random_tensor({3, 40}, 3, wide);
        };
        const Tensor all = start(), one = start().rows(1, 2);
        gemm(one, rows.rows(1, 2), part, {false, transposed}, 2, beta);
        gemm(all, rows, part, {false, transposed}, 2, beta);
        EXPECT_LE(difference(one, all.rows(1, 2)), tolerance::of(wide));
      }
}

// A few rows meet the rows of a weight where these lie, more of them packed: the same chain of sums.
TEST(Gemm, FewRowsHaveTheBitsOfMany) {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32})
    for (const auto& [n, k] : {std::pair{1, 8}, {17, 264}, {90, 700}, {32, 1}})
      for (const double beta : {0.0, 1.0}) {
        const Tensor a = random_tensor({70, k}, 1, dtype),
                     b = random_tensor({n, k + 3}, 2, dtype).columns(2, k + 2),
                     start = random_tensor({70, n}, 3, dtype), all = empty({70, n}, dtype);
        all.copy_from(start);
        gemm(all, a, b, {false, true}, 1, beta);
        for (const int64_t m : {2, 7, 8, 9, 16, 17, 32}) {
          const Tensor few = empty({m, n}, dtype);
          few.copy_from(start.rows(5, 5 + m));
          gemm(few, a.rows(5, 5 + m), b, {false, true}, 1, beta);
          EXPECT_LE(difference(few, all.rows(5, 5 + m)), tolerance::of(dtype));
          if (default_device() == Device::cpu) {
            EXPECT_TRUE(same_bits(few, all.rows(5, 5 + m))) << m << ' ' << n << ' ' << k << ' ' << beta;
          }
        }
      }
}

TEST(Gemm, OperandsOfTwoTypesAndACAccumulatedInItsOwn) {
  const Tensor a = random_tensor({33, 20}, 1, Dtype::bf16), b = random_tensor({20, 37}, 2, Dtype::f32);
  const Tensor exact = scale(matmul(a.to(Dtype::f64), b.to(Dtype::f64)), 3);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const Tensor c = full({33, 37}, 1, dtype);
    gemm(c, a, b, {}, 3, 2);
    EXPECT_LE(difference(c, add(exact, full({33, 37}, 2, Dtype::f64))), tolerance::of(dtype));
    const Tensor turned = full({37, 33}, 1, dtype);
    gemm(turned, b, a, {true, true}, 3, 2);
    EXPECT_LE(difference(permute(turned, {1, 0}), c), tolerance::of(dtype));
  }
  const Tensor c = zeros({33, 37}, Dtype::f32);
  EXPECT_THROW(gemm(c, a.to(Dtype::f64), b.to(Dtype::f64), {}, 1, 0), Error);
}

// As in decoding: up to 16 rows have a kernel of their own on a GPU.
TEST(Gemm, FewRowsOfBf16) {
  for (const int64_t m : {1, 2, 7, 8, 9, 16, 17})
    for (const auto& [n, k] : {std::pair{1, 8}, {17, 264}, {300, 2056}, {33, 40}, {64, 5504}})
      for (const Dtype to : {Dtype::bf16, Dtype::f32}) {
        if (few() && m % 8 != 1) continue;
        SCOPED_TRACE(text(m, " x ", n, " x ", k, " into ", name_of(to)));
        const Tensor wide = random_tensor({m, k + 16}, 1).to(Dtype::bf16), a = wide.columns(8, k + 8),
                     b = random_tensor({n, k + 8}, 2).to(Dtype::bf16).columns(8, k + 8),
                     start = random_tensor({m, n}, 3).to(to);
        const Tensor exact = start.to(Dtype::f64), c = empty({m, n}, to);
        c.copy_from(start);
        gemm(exact, a.contiguous().to(Dtype::f64), b.contiguous().to(Dtype::f64), {false, true}, 0.5, 2);
        gemm(c, a, b, {false, true}, 0.5, 2);
        EXPECT_LE(largest_difference(c.to(Dtype::f64), exact) / (1 + std::sqrt(k)), tolerance::of(to));
        gemm(exact, a.contiguous().to(Dtype::f64), b.contiguous().to(Dtype::f64), {false, true}, 1, 0);
        const Tensor fresh = empty({m, n}, to);
        gemm(fresh, a, b, {false, true}, 1, 0);
        EXPECT_LE(largest_difference(fresh.to(Dtype::f64), exact) / (1 + std::sqrt(k)), tolerance::of(to));
      }
}

TEST(Matmul, EmptyInner) {
  EXPECT_EQ(to_values(matmul(random_tensor({2, 0}, 1), random_tensor({0, 2}, 2))),
            std::vector<double>(4, 0.0));
}

}  // namespace
}  // namespace weft
