#include <algorithm>

#include "autograd/ops/gemm_kernel.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/rows.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {
namespace {

struct Extent {
  int64_t rows, columns, pitch, stride;  // stride: from one matrix of the batch to the next
};

Extent extent_of(const Tensor& x) {
  if (x.rank() == 2) return {x.dim(0), x.dim(1), x.pitch(), 0};
  CHECK(x.dense(), "gemm: a batch of matrices must be dense");
  return {x.dim(-2), x.dim(-1), x.dim(-1), x.dim(-2) * x.dim(-1)};
}

template <class T>
MatrixView<T> view_of(const Tensor& x, const Extent& e, int64_t i, bool transposed) {
  const MatrixView<T> view{x.data<T>() + i * e.stride, e.pitch, 1};
  return transposed ? view.transposed() : view;
}

// One row, as in decoding, by columns of b that lie in one piece: packing them would cost more than the
// product.
template <class T, class A, class B>
void dot_products(const Product<T, A, B>& x) {
  const A* const row = x.a.data;
  const int64_t k = x.k;
  for (int64_t j = 0; j < x.n; ++j) {
    const B* column = x.b.data + j * x.b.column;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t p = 0; p < k; ++p) sum += static_cast<T>(row[p]) * static_cast<T>(column[p]);
    x.c[j] = x.alpha * sum + (x.beta == 0 ? T(0) : x.beta * x.c[j]);
  }
}

// Each core makes a run of strips of c, of rows or of columns. No bit depends on where it is cut.
constexpr int64_t kStrip = 32;

template <class T, class A, class B>
void batched(const Tensor& c, const Tensor& a, const Tensor& b, Transpose t, double alpha, double beta) {
  const Extent ec = extent_of(c), ea = extent_of(a), eb = extent_of(b);
  const int64_t batch = c.shape().product(0, c.rank() - 2), inner = t.a ? ea.rows : ea.columns;
  const bool by_rows = ec.rows >= ec.columns;
  const int64_t side = std::max(ec.rows, ec.columns), strips = (side + kStrip - 1) / kStrip;
  const int64_t work = std::min(side, kStrip) * std::min(ec.rows, ec.columns) * std::max<int64_t>(1, inner);
  parallel_for(batch * strips, 1 + kWorthACore / work, [&](int64_t begin, int64_t end) {
    for (int64_t strip = begin, next; strip < end; strip = next) {
      const int64_t i = strip / strips, from = strip % strips * kStrip;
      next = std::min(end, (i + 1) * strips);
      const int64_t length = std::min(side, from + (next - strip) * kStrip) - from;
      const int64_t row = by_rows ? from : 0, column = by_rows ? 0 : from;
      const Product<T, A, B> product{c.data<T>() + i * ec.stride + row * ec.pitch + column,
                                     ec.pitch,
                                     view_of<A>(a, ea, i, t.a).from(row, 0),
                                     view_of<B>(b, eb, i, t.b).from(0, column),
                                     by_rows ? length : ec.rows,
                                     by_rows ? ec.columns : length,
                                     inner,
                                     static_cast<T>(alpha),
                                     static_cast<T>(beta)};
      if (ec.rows == 1 && product.a.column == 1 && product.b.row == 1)
        dot_products(product);
      else
        multiply(product);
    }
  });
}

template <class F>
void with_operand(Dtype dtype, F&& f) {
  CHECK(dtype == Dtype::f32 || dtype == Dtype::bf16, "gemm: an operand in ", name_of(dtype));
  if (dtype == Dtype::f32)
    f.template operator()<float>();
  else
    f.template operator()<bf16>();
}

}  // namespace

void gemm(const Tensor& c, const Tensor& a, const Tensor& b, Transpose t, double alpha, double beta) {
  if (c.numel() == 0) return;
  if (c.dtype() == Dtype::f64) {
    CHECK(a.dtype() == Dtype::f64 && b.dtype() == Dtype::f64, "gemm: ", name_of(a.dtype()), " by ",
          name_of(b.dtype()), " into f64");
    return batched<double, double, double>(c, a, b, t, alpha, beta);
  }
  const bool narrow = c.dtype() == Dtype::bf16;
  const Tensor sum = !narrow ? c : beta == 0 ? empty(c.shape(), Dtype::f32) : c.to(Dtype::f32);
  with_operand(a.dtype(), [&]<class A>() {
    with_operand(b.dtype(), [&]<class B>() { batched<float, A, B>(sum, a, b, t, alpha, beta); });
  });
  if (narrow) c.copy_from(sum);
}

void sum_rows(const Tensor& to, const Tensor& g, double beta) {
  const int64_t rows = g.dim(0), columns = g.dim(1);
  with_float(to.dtype(), [&]<class To>() {
    with_float(g.dtype(), [&]<class T>() {
      To* y = to.data<To>();
      const T* x = g.data<T>();
      parallel_for(columns, std::max<int64_t>(64, row_grain(rows)), [&](int64_t begin, int64_t end) {
        Scratch<Acc<To>> sum(static_cast<size_t>(end - begin));
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
      parallel_for(y.dim(0), row_grain(y.dim(1)), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          for (int64_t j = 0; j < y.dim(1); ++j)
            p[i * y.pitch() + j] = static_cast<T>(static_cast<Acc<T>>(p[i * y.pitch() + j]) +
                                                  static_cast<Acc<T>>(static_cast<Acc<U>>(b[j])));
      });
    });
  });
}

}  // namespace weft::cpu
