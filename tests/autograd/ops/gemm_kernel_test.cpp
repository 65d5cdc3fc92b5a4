// The product on one core against three loops, on every instruction set that this processor has.

#include "autograd/ops/gemm_kernel.h"
#include "autograd/ops/instruction_set.h"

#include <algorithm>

#include "autograd/philox.h"
#include "tests/autograd/test_tensors.h"

namespace weft::cpu {
namespace {

template <class T>
std::vector<T> noise(int64_t n, uint32_t stream) {
  std::vector<T> x;
  for (int64_t i = 0; i < n; ++i)
    x.push_back(static_cast<T>(RandomKey{1, stream}.normal(static_cast<uint64_t>(i))));
  return x;
}

template <class T>
MatrixView<T> matrix(const std::vector<T>& x, int64_t rows, int64_t columns, bool transposed) {
  return transposed ? MatrixView<T>{x.data(), 1, rows} : MatrixView<T>{x.data(), columns, 1};
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class T, class A, class B>
void compare(int64_t m, int64_t n, int64_t k, bool ta, bool tb, T beta) {
  SCOPED_TRACE(testing::Message() << m << "x" << n << "x" << k << " " << ta << tb << " beta " << beta);
  const std::vector<A> a = noise<A>(m * k, 1);
  const std::vector<B> b = noise<B>(k * n, 2);
  const int64_t pitch = n + 3;
  const T behind = 7;  // what stands behind the rows of c and stays there
  std::vector<T> c = beta == 0 ? std::vector<T>(m * pitch, T(NAN)) : noise<T>(m * pitch, 3);
  for (int64_t i = 0; i < m; ++i) std::fill_n(&c[i * pitch + n], 3, behind);
  const MatrixView<A> left = matrix(a, m, k, ta);
  const MatrixView<B> right = matrix(b, k, n, tb);
  const auto product = [&](std::vector<T>& to) {
    return Product<T, A, B>{to.data(), pitch, left, right, m, n, k, T(0.5), beta};
  };

  std::vector<T> base = c, space(kPackSpace, T(NAN));
  base::multiply(product(base), space.data());
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < pitch; ++j) {
      const int64_t at = i * pitch + j;
      if (j >= n) {
        ASSERT_EQ(base[at], behind);
        continue;
      }
      double sum = 0, size = 0;
      for (int64_t p = 0; p < k; ++p) {
        const double term = static_cast<double>(left.data[i * left.row + p * left.column]) *
                            static_cast<double>(right.data[p * right.row + j * right.column]);
        sum += term;
        size += std::abs(term);
      }
      const double wanted =
          0.5 * sum + (beta == 0 ? 0 : static_cast<double>(beta) * static_cast<double>(c[at]));
      const double unit = sizeof(T) == 4 ? 1e-6 : 1e-14;
      ASSERT_NEAR(base[at], wanted, unit * (1 + size)) << i << " " << j;
    }

#ifdef __x86_64__
  if (has_avx512()) {
    std::vector<T> wide = c;
    avx512::multiply(product(wide), space.data());
    EXPECT_TRUE(same(wide, base)) << "the instruction sets differ";
  }
#endif

  // In two pieces, cut where no tile ends.
  std::vector<T> pieces = c;
  const int64_t row = m / 2, column = n / 3;
  for (const auto& [i, rows] : {std::pair(int64_t{0}, row), std::pair(row, m - row)})
    for (const auto& [j, columns] : {std::pair(int64_t{0}, column), std::pair(column, n - column)}) {
      Product<T, A, B> piece = product(pieces);
      piece.c += i * pitch + j;
      piece.a = left.from(i, 0);
      piece.b = right.from(0, j);
      piece.m = rows;
      piece.n = columns;
      multiply(piece);
    }
  EXPECT_TRUE(same(pieces, base)) << "pieces differ from the whole";
}

TEST(GemmKernel, IsTheProductAtEverySizeInEqualBits) {
  for (const bool ta : {false, true})
    for (const bool tb : {false, true})
      for (const int64_t m : {1, 6, 9, 70})
        for (const int64_t n : {1, 16, 24, 35, 48, 530})
          for (const int64_t k : {0, 1, 5, 64, 300}) {
            compare<float, float, float>(m, n, k, ta, tb, 0);
            compare<float, float, float>(m, n, k, ta, tb, -2);
          }
  compare<float, float, float>(64, 2048, 64, false, false, 0);  // too wide to be read where it lies
  compare<float, float, float>(64, 64, 1100, false, false, 1);
}

TEST(GemmKernel, OtherTypes) {
  for (const bool ta : {false, true})
    for (const bool tb : {false, true})
      for (const int64_t k : {3, 270}) {
        compare<double, double, double>(13, 41, k, ta, tb, 0);
        compare<double, double, double>(16, 32, k, ta, tb, 1);
        compare<double, double, double>(16, 12, k, ta, tb, 0);
        compare<double, double, double>(16, 24, k, ta, tb, 1);
        compare<float, bf16, bf16>(13, 41, k, ta, tb, 0);
        compare<float, bf16, float>(24, 64, k, ta, tb, 1);
        compare<float, float, bf16>(24, 64, k, ta, tb, 0);
      }
}

template <class T, class X>
void compare_transposed(int64_t n, int64_t k, bool turned) {
  const std::vector<X> x = noise<X>(n * k, 1);
  const MatrixView<X> view = matrix(x, n, k, turned);
  const int64_t row = n + 2;
  std::vector<T> to(k * row, T(7));
  base::transpose(to.data(), row, view, n, k);
  for (int64_t p = 0; p < k; ++p)
    for (int64_t i = 0; i < row; ++i)
      ASSERT_EQ(to[p * row + i], i < n ? static_cast<T>(view.data[i * view.row + p * view.column]) : T(7));
}

TEST(GemmKernel, Transposes) {
  for (const bool turned : {false, true})
    for (const int64_t n : {1, 4, 64, 67})
      for (const int64_t k : {3, 64}) {
        compare_transposed<float, float>(n, k, turned);
        compare_transposed<float, bf16>(n, k, turned);
        compare_transposed<double, double>(n, k, turned);
      }
}

}  // namespace
}  // namespace weft::cpu
