// cuBLASLt is column-major, and a row-major matrix is its transpose: c = op(a) op(b) is asked for as
// c^T = op(b)^T op(a)^T, which moves nothing.

#include "autograd/cuda/product_plan.h"

#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>

#include "autograd/cuda/runtime.h"
#include "autograd/start_span.h"

namespace weft::cuda {
namespace {

void check_blas(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw Error(Exit::internal, text("cuBLASLt: ", cublasLtGetStatusString(status), " in ", call));
}
#define BLAS_CHECK(...) check_blas(__VA_ARGS__, #__VA_ARGS__)

constexpr int64_t kWorkspace = int64_t{64} << 20;
constexpr int kCandidates = 16, kRepeats = 3;
constexpr float kHopeless = 1.2f;
constexpr double kWorthTiming = 1e9;  // operations
// A decoding step has few of them, but reads all weights each time.
constexpr int64_t kFewRows = 64, kManyWeights = 1 << 19;

cublasLtHandle_t handle() {
  static const cublasLtHandle_t one = [] {
    cublasLtHandle_t h = nullptr;
    BLAS_CHECK(cublasLtCreate(&h));
    return h;
  }();
  return one;
}

// One a thread: of a product in two kernels the second reads there what the first wrote, and another thread's
// may come between them.
void* workspace() {
  thread_local const std::unique_ptr<Buffer> buffer = [] {
    const MemoryScope scope("cuBLASLt workspace");
    return std::make_unique<Buffer>(Device::cuda, kWorkspace);
  }();
  return buffer->data();
}

struct Matrix {
  int64_t rows, columns, pitch, stride;
  Dtype dtype;
};

Matrix matrix_of(const Tensor& x) {
  if (x.rank() == 2) return {x.dim(0), x.dim(1), std::max(x.pitch(), x.dim(1)), 0, x.dtype()};
  CHECK(x.dense(), "gemm: a batch of matrices must be dense");
  return {x.dim(-2), x.dim(-1), x.dim(-1), x.dim(-2) * x.dim(-1), x.dtype()};
}

// All that an algorithm may depend on.
struct Problem {
  Matrix c, a, b;
  Transpose t;
  int64_t batch;
  uint32_t alignment;  // bytes, of all three

  double operations() const {
    return 2.0 * static_cast<double>(batch * c.rows * c.columns) *
           static_cast<double>(t.a ? a.rows : a.columns);
  }
  bool worth_timing() const {
    return operations() >= kWorthTiming || (c.rows <= kFewRows && b.rows * b.columns >= kManyWeights);
  }
  using Numbers = std::array<int64_t, 19>;
  Numbers numbers() const {
    Numbers all;
    size_t n = 0;
    for (const Matrix& m : {c, a, b})
      for (const int64_t x : {m.rows, m.columns, m.pitch, m.stride, static_cast<int64_t>(m.dtype)})
        all[n++] = x;
    for (const int64_t x : {int64_t{t.a}, int64_t{t.b}, batch, int64_t{alignment}}) all[n++] = x;
    return all;
  }
  std::string key() const {
    std::string out;
    for (const int64_t x : numbers()) out += (out.empty() ? "" : ",") + std::to_string(x);
    return out;
  }
};

Problem problem_of(const Tensor& c, const Tensor& a, const Tensor& b, Transpose t) {
  const auto bits = reinterpret_cast<uintptr_t>(c.raw()) | reinterpret_cast<uintptr_t>(a.raw()) |
                    reinterpret_cast<uintptr_t>(b.raw());
  const uint32_t alignment = 1u << std::countr_zero(bits | 256);
  return {matrix_of(c), matrix_of(a), matrix_of(b), t, c.shape().product(0, c.rank() - 2), alignment};
}

cublasLtMatrixLayout_t layout_of(const Matrix& m, int64_t batch) {
  const cudaDataType_t type = m.dtype == Dtype::f64   ? CUDA_R_64F
                              : m.dtype == Dtype::f32 ? CUDA_R_32F
                                                      : CUDA_R_16BF;
  cublasLtMatrixLayout_t layout = nullptr;
  BLAS_CHECK(cublasLtMatrixLayoutCreate(&layout, type, static_cast<uint64_t>(m.columns),
                                        static_cast<uint64_t>(m.rows), m.pitch));
  CHECK(batch <= INT32_MAX, "gemm: a batch of ", batch, " matrices, cuBLASLt takes ", INT32_MAX);
  const auto count = static_cast<int32_t>(batch);
  BLAS_CHECK(
      cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
  BLAS_CHECK(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &m.stride,
                                              sizeof m.stride));
  return layout;
}

ProductPlan describe(const Problem& p) {
  ProductPlan plan;
  const bool f64 = p.c.dtype == Dtype::f64;
  BLAS_CHECK(cublasLtMatmulDescCreate(&plan.product, f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                      f64 ? CUDA_R_64F : CUDA_R_32F));
  const cublasOperation_t first = p.t.b ? CUBLAS_OP_T : CUBLAS_OP_N,
                          second = p.t.a ? CUBLAS_OP_T : CUBLAS_OP_N;
  BLAS_CHECK(cublasLtMatmulDescSetAttribute(plan.product, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first));
  BLAS_CHECK(
      cublasLtMatmulDescSetAttribute(plan.product, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second));
  plan.a = layout_of(p.b, p.batch);
  plan.b = layout_of(p.a, p.batch);
  plan.c = layout_of(p.c, p.batch);
  return plan;
}

std::vector<cublasLtMatmulAlgo_t> candidates(const ProductPlan& plan, uint32_t alignment, int count) {
  cublasLtMatmulPreference_t preference = nullptr;
  BLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
    BLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, what, &value, sizeof value));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspace));
  for (const auto what :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    set(what, alignment);
  std::vector<cublasLtMatmulHeuristicResult_t> found(static_cast<size_t>(count));
  int n = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle(), plan.product, plan.a, plan.b, plan.c,
                                                               plan.c, preference, count, found.data(), &n);
  cublasLtMatmulPreferenceDestroy(preference);
  BLAS_CHECK(status);
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  for (int i = 0; i < n; ++i)
    if (found[i].state == CUBLAS_STATUS_SUCCESS) algorithms.push_back(found[i].algo);
  return algorithms;
}

// Milliseconds of the fastest of a few runs into scratch; of one run, where that shows that it will not beat
// `best`.
float time_of(const ProductPlan& plan, const Tensor& scratch, const Tensor& a, const Tensor& b,
              float best_yet) {
  const double one_f64 = 1, none_f64 = 0;
  const float one_f32 = 1, none_f32 = 0;
  const bool f64 = scratch.dtype() == Dtype::f64;
  const auto run = [&] {
    run_product(plan, scratch, a, b, f64 ? static_cast<const void*>(&one_f64) : &one_f32,
                f64 ? static_cast<const void*>(&none_f64) : &none_f32);
  };
  std::array<cudaEvent_t, 2> events{};
  for (cudaEvent_t& e : events) CUDA_CHECK(cudaEventCreate(&e));
  float best = std::numeric_limits<float>::max();
  run();
  for (int i = 0; i < kRepeats; ++i) {
    float ms = 0;
    CUDA_CHECK(cudaEventRecord(events[0], stream()));
    run();
    CUDA_CHECK(cudaEventRecord(events[1], stream()));
    CUDA_CHECK(cudaEventSynchronize(events[1]));
    CUDA_CHECK(cudaEventElapsedTime(&ms, events[0], events[1]));
    best = std::min(best, ms);
    if (best > kHopeless * best_yet) break;
  }
  for (const cudaEvent_t e : events) CUDA_CHECK(cudaEventDestroy(e));
  return best;
}

// What was found in earlier runs: a line a problem, its key and the algorithm's bytes. A file that cannot be
// read or written costs the search again, nothing else.
class Found {
 public:
  Found() {
    const char *cache = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
    if (cache == nullptr && home == nullptr) return;
    const std::filesystem::path folder =
        (cache != nullptr ? std::filesystem::path(cache) : std::filesystem::path(home) / ".cache") / "weft";
    std::string gpu = describe_device(Device::cuda);
    for (char& c : gpu)
      if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
    std::error_code failed;
    std::filesystem::create_directories(folder, failed);
    path_ = (folder / text("products_", gpu, "_", cublasLtGetVersion(), ".txt")).string();
    std::ifstream file(path_);
    for (std::string key, bytes; file >> key >> bytes;)
      if (bytes.size() == 2 * sizeof(cublasLtMatmulAlgo_t)) known_[key] = parse(bytes);
  }
  std::optional<cublasLtMatmulAlgo_t> find(const std::string& key) const {
    const auto it = known_.find(key);
    return it == known_.end() ? std::nullopt : std::optional(it->second);
  }
  void add(const std::string& key, const cublasLtMatmulAlgo_t& algorithm) const {
    std::ostringstream line;
    const auto* bytes = reinterpret_cast<const unsigned char*>(&algorithm);
    line << key << ' ' << std::hex;
    for (size_t i = 0; i < sizeof algorithm; ++i) line << (bytes[i] >> 4) << (bytes[i] & 15);
    line << '\n';
    if (!path_.empty()) std::ofstream(path_, std::ios::app) << line.str() << std::flush;
  }

 private:
  static cublasLtMatmulAlgo_t parse(const std::string& digits) {
    cublasLtMatmulAlgo_t algorithm;
    auto* bytes = reinterpret_cast<unsigned char*>(&algorithm);
    for (size_t i = 0; i < sizeof algorithm; ++i)
      bytes[i] = static_cast<unsigned char>(std::strtoul(digits.substr(2 * i, 2).c_str(), nullptr, 16));
    return algorithm;
  }
  std::string path_;
  std::map<std::string, cublasLtMatmulAlgo_t> known_;
};

ProductPlan make_plan(const Problem& p, const Tensor& c, const Tensor& a, const Tensor& b, bool overwritten) {
  const StartSpan span("products planned");
  ProductPlan plan = describe(p);
  const bool large = p.worth_timing();
  static const Found found;
  if (large) {
    if (const auto known = found.find(p.key())) {
      plan.algorithm = *known;
      cublasLtMatmulHeuristicResult_t result;
      if (cublasLtMatmulAlgoCheck(handle(), plan.product, plan.a, plan.b, plan.c, plan.c, &plan.algorithm,
                                  &result) == CUBLAS_STATUS_SUCCESS &&
          result.workspaceSize <= static_cast<size_t>(kWorkspace))
        return plan;
    }
  }
  const std::vector<cublasLtMatmulAlgo_t> all = candidates(plan, p.alignment, large ? kCandidates : 1);
  CHECK(!all.empty(), "gemm: cuBLASLt has no algorithm for ", p.key());
  plan.algorithm = all[0];
  if (!large) return plan;
  const MemoryScope scope("search for products");
  const Tensor scratch = overwritten ? c : empty(c.shape(), c.dtype(), Device::cuda);
  if (scratch.pitch() != c.pitch()) return plan;
  ProductPlan trial = plan;
  float best = std::numeric_limits<float>::max();
  for (const cublasLtMatmulAlgo_t& algorithm : all) {
    trial.algorithm = algorithm;
    const float ms = time_of(trial, scratch, a, b, best);
    if (ms < best) {
      best = ms;
      plan.algorithm = algorithm;
    }
  }
  found.add(p.key(), plan.algorithm);
  return plan;
}

}  // namespace

const ProductPlan& plan_product(const Tensor& c, const Tensor& a, const Tensor& b, Transpose transpose,
                                bool overwritten) {
  const Problem p = problem_of(c, a, b, transpose);
  static std::mutex mutex;
  static std::map<Problem::Numbers, ProductPlan> plans;
  const std::lock_guard lock(mutex);
  const Problem::Numbers key = p.numbers();
  auto it = plans.find(key);
  if (it == plans.end()) it = plans.emplace(key, make_plan(p, c, a, b, overwritten)).first;
  return it->second;
}

void run_product(const ProductPlan& plan, const Tensor& c, const Tensor& a, const Tensor& b,
                 const void* alpha, const void* beta) {
  BLAS_CHECK(cublasLtMatmul(handle(), plan.product, alpha, b.raw(), plan.a, a.raw(), plan.b, beta, c.raw(),
                            plan.c, c.raw(), plan.c, &plan.algorithm, workspace(),
                            static_cast<size_t>(kWorkspace), stream()));
}

}  // namespace weft::cuda
