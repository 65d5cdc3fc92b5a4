// Products by cuBLASLt. It is column-major, and a row-major matrix is its transpose: c = op(a) op(b) is asked
// for as c^T = op(b)^T op(a)^T, which moves nothing.

#include <cublasLt.h>

#include <map>
#include <mutex>
#include <tuple>

#include "autograd/cuda/kernel.cuh"
#include "autograd/ops/convert.h"
#include "autograd/ops/matmul.h"

namespace weft::cuda {
namespace {

void check_blas(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw Error(Exit::internal, text("cuBLASLt: ", cublasLtGetStatusString(status), " in ", call));
}
#define BLAS_CHECK(...) check_blas(__VA_ARGS__, #__VA_ARGS__)

constexpr int64_t kWorkspace = int64_t{64} << 20;

cudaDataType_t type_of(Dtype dtype) {
  return dtype == Dtype::f64 ? CUDA_R_64F : dtype == Dtype::f32 ? CUDA_R_32F : CUDA_R_16BF;
}

struct Matrix {
  int64_t rows, columns, pitch, stride;
  Dtype dtype;
  auto key() const { return std::tuple(rows, columns, pitch, stride, dtype); }
};

Matrix matrix_of(const Tensor& x) {
  if (x.rank() == 2) return {x.dim(0), x.dim(1), std::max(x.pitch(), x.dim(1)), 0, x.dtype()};
  CHECK(x.dense(), "gemm: a batch of matrices must be dense");
  return {x.dim(-2), x.dim(-1), x.dim(-1), x.dim(-2) * x.dim(-1), x.dtype()};
}

// A product of these shapes, and the algorithm chosen for it.
struct Plan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm;
};

cublasLtHandle_t handle() {
  static const cublasLtHandle_t one = [] {
    cublasLtHandle_t h = nullptr;
    BLAS_CHECK(cublasLtCreate(&h));
    return h;
  }();
  return one;
}

cublasLtMatrixLayout_t layout_of(const Matrix& m, int64_t batch) {
  cublasLtMatrixLayout_t layout = nullptr;
  BLAS_CHECK(cublasLtMatrixLayoutCreate(&layout, type_of(m.dtype), static_cast<uint64_t>(m.columns),
                                        static_cast<uint64_t>(m.rows), m.pitch));
  const auto count = static_cast<int32_t>(batch);
  BLAS_CHECK(
      cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
  BLAS_CHECK(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &m.stride,
                                              sizeof m.stride));
  return layout;
}

// `alignment`: bytes to which all three pointers are aligned, which decides what algorithms may be used.
Plan make_plan(const Matrix& c, const Matrix& a, const Matrix& b, Transpose t, int64_t batch,
               uint32_t alignment) {
  Plan plan;
  const bool f64 = c.dtype == Dtype::f64;
  BLAS_CHECK(cublasLtMatmulDescCreate(&plan.product, f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                      f64 ? CUDA_R_64F : CUDA_R_32F));
  const cublasOperation_t first = t.b ? CUBLAS_OP_T : CUBLAS_OP_N, second = t.a ? CUBLAS_OP_T : CUBLAS_OP_N;
  BLAS_CHECK(cublasLtMatmulDescSetAttribute(plan.product, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first));
  BLAS_CHECK(
      cublasLtMatmulDescSetAttribute(plan.product, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second));
  plan.a = layout_of(b, batch);
  plan.b = layout_of(a, batch);
  plan.c = layout_of(c, batch);
  cublasLtMatmulPreference_t preference = nullptr;
  BLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
    BLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, what, &value, sizeof value));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspace));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment);
  cublasLtMatmulHeuristicResult_t best;
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle(), plan.product, plan.a, plan.b, plan.c,
                                                               plan.c, preference, 1, &best, &found);
  cublasLtMatmulPreferenceDestroy(preference);
  BLAS_CHECK(status);
  CHECK(found > 0, "gemm: cuBLASLt has no algorithm for ", c.rows, " x ", c.columns, " ", name_of(c.dtype));
  plan.algorithm = best.algo;
  return plan;
}

uint32_t alignment_of(const Tensor& c, const Tensor& a, const Tensor& b) {
  const auto bits = reinterpret_cast<uintptr_t>(c.raw()) | reinterpret_cast<uintptr_t>(a.raw()) |
                    reinterpret_cast<uintptr_t>(b.raw());
  uint32_t bytes = 256;
  while (bytes > 1 && bits % bytes != 0) bytes /= 2;
  return bytes;
}

const Plan& plan_of(const Tensor& c, const Tensor& a, const Tensor& b, Transpose t, int64_t batch) {
  const Matrix mc = matrix_of(c), ma = matrix_of(a), mb = matrix_of(b);
  const uint32_t alignment = alignment_of(c, a, b);
  const auto key = std::tuple(mc.key(), ma.key(), mb.key(), t.a, t.b, batch, alignment);
  static std::mutex mutex;
  static std::map<std::remove_const_t<decltype(key)>, Plan> plans;
  const std::lock_guard lock(mutex);
  auto it = plans.find(key);
  if (it == plans.end()) it = plans.emplace(key, make_plan(mc, ma, mb, t, batch, alignment)).first;
  return it->second;
}

template <class S>
void run(const Plan& plan, const Tensor& c, const Tensor& a, const Tensor& b, S alpha, S beta) {
  static const auto* const workspace = [] {  // one stream: products never overlap
    const MemoryScope scope("cuBLASLt workspace");
    return new Buffer(Device::cuda, kWorkspace);
  }();
  BLAS_CHECK(cublasLtMatmul(handle(), plan.product, &alpha, b.raw(), plan.a, a.raw(), plan.b, &beta, c.raw(),
                            plan.c, c.raw(), plan.c, &plan.algorithm, workspace->data(),
                            static_cast<size_t>(kWorkspace), stream()));
}

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
  const Plan& plan = plan_of(c, a, b, t, c.shape().product(0, c.rank() - 2));
  if (c.dtype() == Dtype::f64)
    run<double>(plan, c, a, b, alpha, beta);
  else
    run<float>(plan, c, a, b, static_cast<float>(alpha), static_cast<float>(beta));
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
