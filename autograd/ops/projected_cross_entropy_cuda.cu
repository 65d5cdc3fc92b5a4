#include "autograd/ops/projected_cross_entropy.h"

#include <limits>

#include "autograd/cuda/rounded_math.cuh"

namespace weft::cuda {
namespace {

// Two blocks a multiprocessor, one that reads beside one that writes.
constexpr int kMostThreads = 768, kAtOnce = 3;
constexpr int64_t kHeldBytes = 110 << 10;  // of a row in shared memory, so that two blocks fit

// `may`: false where no cap is known when compiling.
template <class A, bool may>
struct RowLoss {
  A cap, inverse_cap, z_loss;
  const double* seed;  // null: 1
  __device__ A capped(A x) const {
    if constexpr (!may) return x;
    return inverse_cap > 0 ? cap * vector_math::tanh(x * inverse_cap) : x;
  }
  // Of capped(x) by x, at the value y = capped(x).
  __device__ A slope(A y) const {
    if constexpr (!may) return A(1);
    const A t = y * inverse_cap;
    return A(1) - t * t;
  }
};

template <class A>
__device__ A nothing() {
  return -std::numeric_limits<A>::infinity();
}
// Where nothing is above -infinity yet, differences to 0 stay -infinity.
template <class A>
__device__ A shift_of(A m) {
  return m == nothing<A>() ? A(0) : m;
}

// One block a row: one pass for the maximum and the sum of powers, and one that writes d loss / d logits,
// from shared memory where the row is held there, else from its end, where it is still in the cache. d may be
// x.
template <class X, bool whole, bool held, bool may_cap>
__global__ void __launch_bounds__(kMostThreads, 2)
    cross_entropy_kernel(Acc<X>* loss, Acc<X>* nll, X* d, const X* x, const int32_t* targets,
                         const Acc<X>* weights, int n, RowLoss<Acc<X>, may_cap> f) {
  using A = Acc<X>;
  constexpr int V = Pack<X>::kSize;
  extern __shared__ __align__(16) unsigned char shared[];
  X* own_row = reinterpret_cast<X*>(shared);  // each thread reads back what it wrote itself
  const int64_t row = blockIdx.x;
  const int target = targets[row];
  const A seed = f.seed == nullptr ? A(1) : static_cast<A>(*f.seed);  // long before it is wanted
  REQUIRE_ON_DEVICE(target >= -1 && target < n);  // use the tokenizer the model was made for
  const int step = static_cast<int>(blockDim.x) * V, first = static_cast<int>(threadIdx.x) * V;
  const int span = kAtOnce * step, spans = (n + span - 1) / span;
  x += row * n;
  if (d != nullptr) d += row * n;
  if (target < 0) {
    if (threadIdx.x == 0) loss[row] = nll[row] = 0;
    if (d != nullptr)
      for (int j = first; j < n; j += step) store<whole, V>(d + j, Vector<X, V>{}, n - j);
    return;
  }
  const A at_target = f.capped(A(x[target]));  // read before anything is overwritten
  A largest = nothing<A>(), sum = 0;
  for (int i = 0; i < spans; ++i) {
    const int begin = i * span + first;
    Vector<X, V> v[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (begin + k * step < n) v[k] = load<whole, V>(x + begin + k * step, n - begin - k * step);
    const auto values = [&](int k) {
      auto y = widen<X, V>(v[k]);
#pragma unroll
      for (int e = 0; e < V; ++e)
        y.v[e] = whole || begin + k * step + e < n ? f.capped(y.v[e]) : nothing<A>();
      return y;
    };
    A candidate = nothing<A>();
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (begin + k * step >= n) continue;
      if constexpr (held) *reinterpret_cast<Vector<X, V>*>(own_row + begin + k * step) = v[k];
      const auto y = values(k);
#pragma unroll
      for (int e = 0; e < V; ++e) candidate = y.v[e] > candidate ? y.v[e] : candidate;
    }
    if (candidate > largest) {
      sum *= Exponential<X>{candidate}(largest);
      largest = candidate;
    }
    const Exponential<X> power{shift_of(largest)};
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (begin + k * step >= n) continue;
      const auto y = values(k);
#pragma unroll
      for (int e = 0; e < V; ++e) sum += power(y.v[e]);
    }
  }
  const A m = block_max(largest);
  const Exponential<X> power{m};
  sum = block_sum(sum * power(largest));
  const A lse = m + std::log(sum), weight = weights == nullptr ? A(1) : weights[row];
  if (threadIdx.x == 0) {
    // Not lse - x: near certainty that difference has no digits left.
    const A own = std::log(sum) - (at_target - m);
    nll[row] = own;
    loss[row] = weight * (own + f.z_loss * lse * lse);
  }
  if (d == nullptr) return;
  const A factor = weight * seed, scale = factor * (A(1) + 2 * f.z_loss * lse) / sum;
  for (int i = spans - 1; i >= 0; --i) {
    const int begin = i * span + first;
    const X* from = held ? own_row : x;
    Vector<X, V> v[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (begin + k * step < n) v[k] = load<whole, V>(from + begin + k * step, n - begin - k * step);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int j = begin + k * step;
      if (j >= n) continue;
      auto y = widen<X, V>(v[k]);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const A value = f.capped(y.v[e]);
        y.v[e] = scale * power(value) * f.slope(value);
      }
      if (target >= j && target < j + V) {
        const A at_tip = factor * f.slope(at_target);
#pragma unroll
        for (int e = 0; e < V; ++e)
          if (j + e == target) y.v[e] -= at_tip;
      }
      store<whole, V>(d + j, narrow<X, V>(y), n - j);
    }
  }
}

template <class X>
void cross_entropy_as(const Tensor& loss, const Tensor& nll, const Tensor& gradient, const Tensor& logits,
                      const Tensor& targets, const Tensor& weights, double softcap, double z_loss,
                      const Tensor& seed) {
  using A = Acc<X>;
  const int64_t n = logits.dim(1), row_bytes = n * static_cast<int64_t>(sizeof(X));
  X* d = gradient.defined() ? data<X>(gradient) : nullptr;
  const bool whole = n % Pack<X>::kSize == 0 && aligned(logits.raw()) && aligned(d);
  const bool holds = whole && d != nullptr && row_bytes <= kHeldBytes;
  const auto launch = [&]<bool kWhole, bool kHeld, bool kMayCap>() {
    const auto kernel = cross_entropy_kernel<X, kWhole, kHeld, kMayCap>;
    static const bool ready = [=] {
      if (kHeld)
        CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kHeldBytes));
      return true;
    }();
    static_cast<void>(ready);
    kernel<<<static_cast<unsigned>(logits.dim(0)), std::min(row_threads(n), kMostThreads),
             static_cast<size_t>(kHeld ? row_bytes : 0), stream()>>>(
        data<A>(loss), data<A>(nll), d, data<const X>(logits), data<const int32_t>(targets),
        weights.defined() ? data<const A>(weights) : nullptr, static_cast<int>(n),
        {static_cast<A>(softcap), softcap > 0 ? static_cast<A>(1 / softcap) : A(0), static_cast<A>(z_loss),
         seed.defined() ? data<const double>(seed) : nullptr});
  };
  if constexpr (std::is_same_v<X, bf16>) {
    if (softcap == 0 && holds) return launch.template operator()<true, true, false>();
    if (softcap == 0 && whole) return launch.template operator()<true, false, false>();
  }
  if (holds)
    launch.template operator()<true, true, true>();
  else if (whole)
    launch.template operator()<true, false, true>();
  else
    launch.template operator()<false, false, true>();
}

template <class To, class From>
void add_scaled_as(const Tensor& to, const Tensor& from, const Tensor& scale, bool sum) {
  using A = Acc<To>;
  const double* k = data<const double>(scale);
  To* y = data<To>(to);
  const From* x = data<const From>(from);
  if constexpr (std::is_same_v<To, From>)
    if (to.dense() && from.dense()) {
      if (sum)
        return map(
            to.numel(), y, [=] __device__(A a, A b) { return a + static_cast<A>(*k) * b; },
            static_cast<const To*>(y), x);
      return map(
          to.numel(), y, [=] __device__(A b) { return static_cast<A>(*k) * b; }, x);
    }
  const int64_t columns = to.row_size(), to_pitch = to.pitch(), from_pitch = from.pitch();
  each(to.numel(), [=] __device__(int64_t i) {
    int64_t column = i;
    const int64_t row = divide(column, columns);
    To& target = y[row * to_pitch + column];
    const A own = sum ? A(target) : A(0);
    target =
        static_cast<To>(own + static_cast<A>(*k) * static_cast<A>(Acc<From>(x[row * from_pitch + column])));
  });
}

}  // namespace

void cross_entropy(const Tensor& loss, const Tensor& nll, const Tensor& gradient, const Tensor& logits,
                   const Tensor& targets, const Tensor& weights, double softcap, double z_loss,
                   const Tensor& seed) {
  const int64_t n = logits.dim(1);
  if (logits.dim(0) == 0) return;
  CHECK(n < (int64_t{1} << 30), "cross-entropy: a vocabulary of ", n);
  with_float(logits.dtype(), [&]<class X>() {
    cross_entropy_as<X>(loss, nll, gradient, logits, targets, weights, softcap, z_loss, seed);
  });
  check_launch("cross_entropy");
}

void add_scaled(const Tensor& to, const Tensor& from, const Tensor& scale, double beta) {
  if (to.numel() == 0) return;
  const Tensor k = scale.to(Dtype::f64);
  with_float(to.dtype(), [&]<class To>() {
    with_float(from.dtype(), [&]<class From>() { add_scaled_as<To, From>(to, from, k, beta != 0); });
  });
}

}  // namespace weft::cuda
