#include "autograd/cuda/few_rows.h"
#include "autograd/cuda/kernel.cuh"
#include "autograd/cuda/product_plan.h"
#include "autograd/ops/convert.h"
#include "autograd/ops/matmul.h"

namespace weft::cuda {
namespace {

template <class To, class T>
__global__ void sum_rows_kernel(To* y, const T* x, int64_t rows, int64_t columns, int64_t pitch,
                                Acc<To> beta) {
  // 32 columns a block; each of its rows of threads sums every 32nd row of x.
  __shared__ Acc<To> parts[kWarp][kWarp + 1];
  const int64_t column = int64_t{blockIdx.x} * kWarp + threadIdx.x;
  Acc<To> sum = 0;
  if (column < columns)
    for (int64_t row = threadIdx.y; row < rows; row += kWarp)
      sum += static_cast<Acc<To>>(x[row * pitch + column]);
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  sum = warp_sum(parts[threadIdx.x][threadIdx.y]);
  const int64_t own = int64_t{blockIdx.x} * kWarp + threadIdx.y;
  if (threadIdx.x == 0 && own < columns)
    y[own] = static_cast<To>(sum + (beta == 0 ? 0 : beta * Acc<To>(y[own])));
}

template <class T, class U>
void add_row_as(const Tensor& y, const Tensor& bias) {
  T* p = data<T>(y);
  const U* b = data<U>(bias);
  const int64_t columns = y.dim(1), pitch = y.pitch();
  each(y.numel(), [=] __device__(int64_t i) {
    int64_t column = i;
    T& target = p[divide(column, columns) * pitch + column];
    target =
        static_cast<T>(static_cast<Acc<T>>(target) + static_cast<Acc<T>>(static_cast<Acc<U>>(b[column])));
  });
}

}  // namespace

void gemm(const Tensor& c, const Tensor& a, const Tensor& b, Transpose t, double alpha, double beta) {
  if (c.numel() == 0) return;
  if (a.numel() == 0) {  // an empty sum
    const Tensor none = zeros(c.shape(), c.dtype(), c.device());
    if (beta == 0) c.copy_from(none);
    CHECK(beta == 0 || beta == 1, "gemm: beta ", beta, " of an empty sum");
    return;
  }
  if (a.dtype() != b.dtype())
    return cuda::gemm(c, a.to(wide_of(a.dtype())), b.to(wide_of(b.dtype())), t, alpha, beta);
  if (c.dtype() == Dtype::bf16 && a.dtype() != Dtype::bf16) {
    const Tensor sum = beta == 0 ? empty(c.shape(), a.dtype(), c.device()) : c.to(a.dtype());
    cuda::gemm(sum, a, b, t, alpha, beta);
    return c.copy_from(sum);
  }
  CHECK(c.dtype() == a.dtype() || c.dtype() == wide_of(a.dtype()), "gemm: ", name_of(a.dtype()), " into ",
        name_of(c.dtype()));
  if (c.rank() == 2 && !t.a && t.b && few_rows_serves(a, b)) return few_rows(c, a, b, alpha, beta);
  const ProductPlan& plan = plan_product(c, a, b, t, beta == 0);
  const auto alpha_f32 = static_cast<float>(alpha), beta_f32 = static_cast<float>(beta);
  if (c.dtype() == Dtype::f64)
    run_product(plan, c, a, b, &alpha, &beta);
  else
    run_product(plan, c, a, b, &alpha_f32, &beta_f32);
}

void sum_rows(const Tensor& to, const Tensor& g, double beta) {
  if (to.numel() == 0) return;
  const auto blocks = static_cast<unsigned>((g.dim(1) + kWarp - 1) / kWarp);
  with_float(to.dtype(), [&]<class To>() {
    with_float(g.dtype(), [&]<class T>() {
      sum_rows_kernel<<<blocks, dim3(kWarp, kWarp), 0, stream()>>>(
          data<To>(to), data<const T>(g), g.dim(0), g.dim(1), g.pitch(), static_cast<Acc<To>>(beta));
    });
  });
  check_launch("sum_rows");
}

void add_row(const Tensor& y, const Tensor& bias) {
  with_float(y.dtype(),
             [&]<class T>() { with_float(bias.dtype(), [&]<class U>() { add_row_as<T, U>(y, bias); }); });
}

}  // namespace weft::cuda
