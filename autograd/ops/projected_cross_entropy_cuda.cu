#include "autograd/ops/projected_cross_entropy.h"

#include <limits>

#include "autograd/cuda/rows.cuh"
#include "autograd/ops/vector_math.h"

namespace weft::cuda {
namespace {

// One block a multiprocessor, so that the rows in work fit in the L2 cache between their two passes.
constexpr int kMostThreads = 1024, kAtOnce = 4;

template <class A>
struct RowLoss {
  A cap, inverse_cap, z_loss;
  __device__ A capped(A x) const { return inverse_cap > 0 ? cap * vector_math::tanh(x * inverse_cap) : x; }
};

// A running maximum, and the sum of e^(x - maximum).
template <class A>
struct Running {
  A largest = -std::numeric_limits<A>::infinity(), sum = 0;
  // Nothing above -infinity yet: differences to 0 stay -infinity.
  __device__ static A shift(A m) { return m == -std::numeric_limits<A>::infinity() ? A(0) : m; }
  __device__ void raise_to(A candidate) {
    if (!(candidate > largest)) return;
    sum *= vector_math::exp(largest - candidate);
    largest = candidate;
  }
};

// One block a row: one pass for the maximum and the sum, and one from the end, where the row is still in the
// cache, that writes d loss / d logits. d may be x.
template <class A, class D, bool whole>
__global__ void __launch_bounds__(kMostThreads)
    cross_entropy_kernel(A* loss, A* nll, D* d, const A* x, const int32_t* targets, const A* weights, int n,
                         RowLoss<A> f) {
  constexpr int V = Pack<A>::kSize;
  const int64_t row = blockIdx.x;
  const int target = targets[row];
  REQUIRE_ON_DEVICE(target >= -1 && target < n);  // use the tokenizer the model was made for
  const int step = static_cast<int>(blockDim.x) * V, first = static_cast<int>(threadIdx.x) * V;
  const int span = kAtOnce * step, spans = (n + span - 1) / span;
  x += row * n;
  if (d != nullptr) d += row * n;
  if (target < 0) {
    if (threadIdx.x == 0) loss[row] = nll[row] = 0;
    if (d != nullptr)
      for (int j = first; j < n; j += step) store<whole, V>(d + j, Vector<D, V>{}, n - j);
    return;
  }
  const A at_target = f.capped(x[target]);  // read before anything is overwritten
  Running<A> mine;
  for (int i = 0; i < spans; ++i) {
    const int begin = i * span + first;
    Vector<A, V> v[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (begin + k * step < n) v[k] = load<whole, V>(x + begin + k * step, n - begin - k * step);
    A largest = -std::numeric_limits<A>::infinity();
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int j = begin + k * step;
      if (j >= n) continue;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        A& value = v[k].v[e];
        value = whole || j + e < n ? f.capped(value) : -std::numeric_limits<A>::infinity();
        largest = value > largest ? value : largest;
      }
    }
    mine.raise_to(largest);
    const A shift = Running<A>::shift(mine.largest);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (begin + k * step >= n) continue;
#pragma unroll
      for (int e = 0; e < V; ++e) mine.sum += vector_math::exp(v[k].v[e] - shift);
    }
  }
  const A m = block_max(mine.largest);
  const A sum = block_sum(mine.sum * vector_math::exp(mine.largest - m));
  const A lse = m + std::log(sum), weight = weights == nullptr ? A(1) : weights[row];
  if (threadIdx.x == 0) {
    // Not lse - x: near certainty that difference has no digits left.
    const A own = std::log(sum) - (at_target - m);
    nll[row] = own;
    loss[row] = weight * (own + f.z_loss * lse * lse);
  }
  if (d == nullptr) return;
  const A scale = weight * (A(1) + 2 * f.z_loss * lse) / sum;
  const A tip = at_target * f.inverse_cap, at_tip = weight * (A(1) - tip * tip);
  for (int i = spans - 1; i >= 0; --i) {
    const int begin = i * span + first;
    Vector<A, V> v[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (begin + k * step < n) v[k] = load<whole, V>(x + begin + k * step, n - begin - k * step);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int j = begin + k * step;
      if (j >= n) continue;
      Vector<D, V> out;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const A value = f.capped(v[k].v[e]), t = value * f.inverse_cap;
        const A slope = scale * vector_math::exp(value - m) * (A(1) - t * t);
        out.v[e] = static_cast<D>(j + e == target ? slope - at_tip : slope);
      }
      store<whole, V>(d + j, out, n - j);
    }
  }
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
                   const Tensor& targets, const Tensor& weights, double softcap, double z_loss) {
  const int64_t n = logits.dim(1);
  if (logits.dim(0) == 0) return;
  CHECK(n < (int64_t{1} << 30), "cross-entropy: a vocabulary of ", n);
  const auto run = [&]<class A, class D>(A*, D* d) {
    const RowLoss<A> f{static_cast<A>(softcap), softcap > 0 ? static_cast<A>(1 / softcap) : A(0),
                       static_cast<A>(z_loss)};
    const bool whole = n % Pack<A>::kSize == 0 && aligned(logits.raw()) && aligned(d);
    const auto launch = [&](auto kernel) {
      kernel<<<static_cast<unsigned>(logits.dim(0)), row_threads(n), 0, stream()>>>(
          data<A>(loss), data<A>(nll), d, data<const A>(logits), data<const int32_t>(targets),
          weights.defined() ? data<const A>(weights) : nullptr, static_cast<int>(n), f);
    };
    if (whole)
      launch(cross_entropy_kernel<A, D, true>);
    else
      launch(cross_entropy_kernel<A, D, false>);
  };
  const auto into = [&]<class A>(A* one) {
    if (!gradient.defined()) return run(one, static_cast<A*>(nullptr));
    with_float(gradient.dtype(), [&]<class D>() { run(one, data<D>(gradient)); });
  };
  if (logits.dtype() == Dtype::f64)
    into(static_cast<double*>(nullptr));
  else
    into(static_cast<float*>(nullptr));
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
