// One of the few files that include Eigen: its GEMM. bf16 operands are widened into f32 first: Eigen's own
// bf16 product is several times slower than the widening.

#include <Eigen/Core>
#include <algorithm>

#include "autograd/ops/matmul.h"
#include "autograd/parallel.h"

namespace weft::cpu {
namespace {

template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using ConstMap = Eigen::Map<const Matrix<T>, 0, Eigen::OuterStride<>>;
template <class T>
using MutableMap = Eigen::Map<Matrix<T>, 0, Eigen::OuterStride<>>;

struct Extent {
  int64_t rows, columns, pitch, stride;  // stride: from one matrix of the batch to the next
};

Extent extent_of(const Tensor& x) {
  if (x.rank() == 2) return {x.dim(0), x.dim(1), x.pitch(), 0};
  CHECK(x.dense(), "gemm: a batch of matrices must be dense");
  return {x.dim(-2), x.dim(-1), x.dim(-1), x.dim(-2) * x.dim(-1)};
}

template <class T>
void product(T* c, Extent ec, const T* a, Extent ea, const T* b, Extent eb, Transpose t, T alpha, T beta) {
  const ConstMap<T> A(a, ea.rows, ea.columns, Eigen::OuterStride<>(ea.pitch));
  const ConstMap<T> B(b, eb.rows, eb.columns, Eigen::OuterStride<>(eb.pitch));
  MutableMap<T> C(c, ec.rows, ec.columns, Eigen::OuterStride<>(ec.pitch));
  if (beta == 0)
    C.setZero();  // not beta * C: what stands there may be NaN
  else if (beta != 1)
    C *= beta;
  if (A.size() == 0 || B.size() == 0) return;
  if (t.a && t.b)
    C.noalias() += alpha * (A.transpose() * B.transpose());
  else if (t.a)
    C.noalias() += alpha * (A.transpose() * B);
  else if (t.b)
    C.noalias() += alpha * (A * B.transpose());
  else
    C.noalias() += alpha * (A * B);
}

// The product is cut into tiles of c of fixed size, one core a tile: the blocking, and with it the order of
// every sum, does not depend on the number of cores. (Eigen's own threading has neither property, and
// collapses when cores are shared with other programs.)
constexpr int64_t kTile = 256;
constexpr int64_t kSmall =
    int64_t{64} * 64 * 64;  // operations below which a second core costs more than it gives

template <class T>
void batched(const Tensor& c, const Tensor& a, const Tensor& b, Transpose t, T alpha, T beta) {
  static const bool one_thread_each = [] {
    Eigen::setNbThreads(1);
    return true;
  }();
  static_cast<void>(one_thread_each);
  const Extent ec = extent_of(c), ea = extent_of(a), eb = extent_of(b);
  const int64_t batch = c.shape().product(0, c.rank() - 2), inner = t.a ? ea.rows : ea.columns;
  const int64_t across = (ec.columns + kTile - 1) / kTile, tiles = (ec.rows + kTile - 1) / kTile * across;
  T* pc = c.data<T>();
  const T *pa = a.data<T>(), *pb = b.data<T>();
  const int64_t work = std::min(ec.rows, kTile) * std::min(ec.columns, kTile) * std::max<int64_t>(1, inner);
  parallel_for(batch * tiles, 1 + kSmall / work, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t i = task / tiles, row = task % tiles / across * kTile, column = task % across * kTile;
      const int64_t rows = std::min(kTile, ec.rows - row), columns = std::min(kTile, ec.columns - column);
      const Extent tc{rows, columns, ec.pitch, 0};
      const Extent ta = t.a ? Extent{ea.rows, rows, ea.pitch, 0} : Extent{rows, ea.columns, ea.pitch, 0};
      const Extent tb =
          t.b ? Extent{columns, eb.columns, eb.pitch, 0} : Extent{eb.rows, columns, eb.pitch, 0};
      product<T>(pc + i * ec.stride + row * ec.pitch + column, tc,
                 pa + i * ea.stride + (t.a ? row : row * ea.pitch), ta,
                 pb + i * eb.stride + (t.b ? column * eb.pitch : column), tb, t, alpha, beta);
    }
  });
}

}  // namespace

void gemm(const Tensor& c, const Tensor& a, const Tensor& b, Transpose t, double alpha, double beta) {
  if (c.numel() == 0) return;
  if (c.dtype() == Dtype::f64 && a.dtype() == Dtype::f64) return batched<double>(c, a, b, t, alpha, beta);
  const Tensor wa = a.to(Dtype::f32), wb = b.to(Dtype::f32);
  if (c.dtype() == Dtype::f32)
    return batched<float>(c, wa, wb, t, static_cast<float>(alpha), static_cast<float>(beta));
  CHECK(c.dtype() == Dtype::bf16, "gemm: ", name_of(a.dtype()), " operands into ", name_of(c.dtype()));
  const Tensor wc = beta == 0 ? empty(c.shape(), Dtype::f32) : c.to(Dtype::f32);
  batched<float>(wc, wa, wb, t, static_cast<float>(alpha), static_cast<float>(beta));
  c.copy_from(wc);
}

void sum_rows(const Tensor& to, const Tensor& g, double beta) {
  const int64_t rows = g.dim(0), columns = g.dim(1);
  with_float(to.dtype(), [&]<class To>() {
    with_float(g.dtype(), [&]<class T>() {
      To* y = to.data<To>();
      const T* x = g.data<T>();
      parallel_for(columns, 64, [&](int64_t begin, int64_t end) {
        std::vector<Acc<To>> sum(static_cast<size_t>(end - begin));
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = begin; j < end; ++j) sum[j - begin] += static_cast<Acc<T>>(x[i * g.pitch() + j]);
        for (int64_t j = begin; j < end; ++j)
          y[j] = static_cast<To>(sum[j - begin] +
                                 (beta == 0 ? 0 : static_cast<Acc<To>>(beta) * static_cast<Acc<To>>(y[j])));
      });
    });
  });
}

void add_row(const Tensor& y, const Tensor& bias) {
  with_float(y.dtype(), [&]<class T>() {
    with_float(bias.dtype(), [&]<class U>() {
      T* p = y.data<T>();
      const U* b = bias.data<U>();
      parallel_for(y.dim(0), 64, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          for (int64_t j = 0; j < y.dim(1); ++j)
            p[i * y.pitch() + j] = static_cast<T>(static_cast<Acc<T>>(p[i * y.pitch() + j]) +
                                                  static_cast<Acc<T>>(static_cast<Acc<U>>(b[j])));
      });
    });
  });
}

}  // namespace weft::cpu
