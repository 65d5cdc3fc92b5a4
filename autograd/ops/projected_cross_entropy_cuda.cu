#include "autograd/ops/projected_cross_entropy.h"

#include <limits>

#include "autograd/cuda/bulk.cuh"
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
  __device__ A seed_value() const { return seed == nullptr ? A(1) : static_cast<A>(*seed); }
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

// The largest of some values, and the sum of the powers of their differences to it.
template <class A>
struct Powers {
  A largest, sum;
};

// Of this thread's vectors of a row x of n, each `step` from the one before; keep(j, v) is told each first.
template <int kAtOnce, bool whole, class X, class Loss, class Keep>
__device__ Powers<Acc<X>> add_up(const X* x, int n, int step, const Loss& f, Keep keep) {
  using A = Acc<X>;
  constexpr int V = Pack<X>::kSize;
  const int first = static_cast<int>(threadIdx.x) * V, span = kAtOnce * step, spans = (n + span - 1) / span;
  Powers<A> all{nothing<A>(), A(0)};
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
      keep(begin + k * step, v[k]);
      const auto y = values(k);
#pragma unroll
      for (int e = 0; e < V; ++e) candidate = y.v[e] > candidate ? y.v[e] : candidate;
    }
    if (candidate > all.largest) {
      all.sum *= Exponential<X>{candidate}(all.largest);
      all.largest = candidate;
    }
    const Exponential<X> power{shift_of(all.largest)};
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (begin + k * step >= n) continue;
      const auto y = values(k);
#pragma unroll
      for (int e = 0; e < V; ++e) all.sum += power(y.v[e]);
    }
  }
  return all;
}

// What the gradient of a row is made of.
template <class A>
struct Slopes {
  int target;
  A at_target, factor, scale, largest;
};

// d, which may be x, at the vectors of add_up, the last first: in a cache they may still be there.
template <int kAtOnce, bool whole, class X, class Loss>
__device__ void write_slopes(X* d, const X* x, int n, int step, const Loss& f, const Slopes<Acc<X>>& s) {
  using A = Acc<X>;
  constexpr int V = Pack<X>::kSize;
  const int first = static_cast<int>(threadIdx.x) * V, span = kAtOnce * step, spans = (n + span - 1) / span;
  const Exponential<X> power{s.largest};
  for (int i = spans - 1; i >= 0; --i) {
    const int begin = i * span + first;
    Vector<X, V> v[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (begin + k * step < n) v[k] = load<whole, V>(x + begin + k * step, n - begin - k * step);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int j = begin + k * step;
      if (j >= n) continue;
      auto y = widen<X, V>(v[k]);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const A value = f.capped(y.v[e]);
        y.v[e] = s.scale * power(value) * f.slope(value);
      }
      if (s.target >= j && s.target < j + V) {
        const A at_tip = s.factor * f.slope(s.at_target);
#pragma unroll
        for (int e = 0; e < V; ++e)
          if (j + e == s.target) y.v[e] -= at_tip;
      }
      store<whole, V>(d + j, narrow<X, V>(y), n - j);
    }
  }
}

// The losses of a row, by one thread, from its powers.
template <class A, class Loss>
__device__ Slopes<A> finish_row(A* loss, A* nll, int64_t row, int target, A at_target, A weight, A seed,
                                const Powers<A>& all, const Loss& f) {
  const A lse = all.largest + std::log(all.sum);
  if (threadIdx.x == 0) {
    // Not lse - x: near certainty that difference has no digits left.
    const A own = std::log(all.sum) - (at_target - all.largest);
    nll[row] = own;
    loss[row] = weight * (own + f.z_loss * lse * lse);
  }
  const A factor = weight * seed;
  return {target, at_target, factor, factor * (A(1) + 2 * f.z_loss * lse) / all.sum, all.largest};
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
  const A weight = weights == nullptr ? A(1) : weights[row], seed = f.seed_value();
  REQUIRE_ON_DEVICE(target >= -1 && target < n);  // use the tokenizer the model was made for
  const int step = static_cast<int>(blockDim.x) * V, first = static_cast<int>(threadIdx.x) * V;
  x += row * n;
  if (d != nullptr) d += row * n;
  if (target < 0) {
    if (threadIdx.x == 0) loss[row] = nll[row] = 0;
    if (d != nullptr)
      for (int j = first; j < n; j += step) store<whole, V>(d + j, Vector<X, V>{}, n - j);
    return;
  }
  const A at_target = f.capped(A(x[target]));  // read before anything is overwritten
  Powers<A> all = add_up<kAtOnce, whole>(x, n, step, f, [&](int j, const Vector<X, V>& v) {
    if constexpr (held) store<true, V>(own_row + j, v, V);
  });
  const A m = block_max(all.largest);
  all = {m, block_sum(all.sum * Exponential<X>{m}(all.largest))};
  const Slopes<A> slopes = finish_row(loss, nll, row, target, at_target, weight, seed, all, f);
  if (d != nullptr) write_slopes<kAtOnce, whole>(d, held ? own_row : x, n, step, f, slopes);
}

// Rows of bf16 that come and go by bulk copies while others are worked on. Two of them are in a
// multiprocessor: the first threads work on one in place, and one more sends that off behind them, piece by
// piece, and asks for the pieces of the next but one as soon as their place is read.
constexpr int kStreamThreads = 800, kStreamAtOnce = 4, kPieces = 8,
              kLeastRows = 8;  // a multiprocessor, below which one more or less counts

template <bool may_cap>
__global__ void __launch_bounds__(kStreamThreads + kWarp, 1)
    cross_entropy_stream_kernel(float* loss, float* nll, bf16* d, const bf16* x, const int32_t* targets,
                                const float* weights, int n, int rows, RowLoss<float, may_cap> f) {
  constexpr int V = Pack<bf16>::kSize, kWarps = kStreamThreads / static_cast<int>(kWarp),
                kStep = kStreamThreads * V;
  static_assert(kWarps <= static_cast<int>(kWarp));
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ BulkBarrier here[2], done[2];
  __shared__ Powers<float> parts[2][kWarps];
  const auto thread = static_cast<int>(threadIdx.x);
  const auto row_of = [&](int k) { return static_cast<int64_t>(blockIdx.x) + int64_t{k} * gridDim.x; };
  const auto place = [&](int k) { return reinterpret_cast<bf16*>(shared) + (k & 1) * n; };
  if (thread == 0)
    for (int i = 0; i < 2; ++i) here[i].init(1), done[i].init(kStreamThreads);
  __syncthreads();
  if (thread >= kStreamThreads) {
    if (thread > kStreamThreads) return;
    const int piece = (n / V + kPieces - 1) / kPieces * V;
    const auto begin_of = [&](int p) { return ::min(p * piece, n); };
    const auto bytes_of = [&](int p) {
      return (begin_of(p + 1) - begin_of(p)) * static_cast<int>(sizeof(bf16));
    };
    const auto ask = [&](int k, int p) {
      here[k & 1].load(place(k) + begin_of(p), x + row_of(k) * n + begin_of(p), bytes_of(p));
    };
    for (int k = 0; k < 2 && row_of(k) < rows; ++k) {
      here[k].expect(n * static_cast<int>(sizeof(bf16)));
      for (int p = 0; p < kPieces; ++p) ask(k, p);
    }
    for (int k = 0; row_of(k) < rows; ++k) {
      done[k & 1].wait(k / 2);
      for (int p = 0; p < kPieces; ++p)
        bulk_store(d + row_of(k) * n + begin_of(p), place(k) + begin_of(p), bytes_of(p));
      if (row_of(k + 2) >= rows) continue;
      here[k & 1].expect(n * static_cast<int>(sizeof(bf16)));
      const auto next = [&]<int... p>(std::integer_sequence<int, p...>) {
        ((wait_until_stores_read<kPieces - 1 - p>(), ask(k + 2, p)), ...);
      };
      next(std::make_integer_sequence<int, kPieces>());
    }
    wait_until_stores_read<0>();
    return;
  }
  const int lane = thread % static_cast<int>(kWarp), warp = thread / static_cast<int>(kWarp);
  const float seed = f.seed_value();
  for (int k = 0; row_of(k) < rows; ++k) {
    const int64_t row = row_of(k);
    const int target = targets[row];
    REQUIRE_ON_DEVICE(target >= -1 && target < n);  // use the tokenizer the model was made for
    const float weight = weights == nullptr ? 1.0f : weights[row];
    bf16* const own = place(k);
    here[k & 1].wait(k / 2);
    if (target < 0) {
      if (thread == 0) loss[row] = nll[row] = 0;
      for (int j = thread * V; j < n; j += kStep) store<true, V>(own + j, Vector<bf16, V>{}, V);
    } else {
      const float at_target = f.capped(static_cast<float>(own[target]));
      Powers<float> all = add_up<kStreamAtOnce, true>(own, n, kStep, f, [](int, const Vector<bf16, V>&) {});
      // Of a warp, then of all. A place is written again two rows later, behind a barrier that its readers
      // pass.
      const auto fold = [](const Powers<float>& p) {
        const float m = warp_max(p.largest);
        return Powers<float>{m, warp_sum(p.sum * Exponential<bf16>{shift_of(m)}(p.largest))};
      };
      all = fold(all);
      if (lane == 0) parts[k & 1][warp] = all;
      asm volatile("bar.sync 1, %0;" ::"n"(kStreamThreads) : "memory");
      all = fold(lane < kWarps ? parts[k & 1][lane] : Powers<float>{nothing<float>(), 0});
      write_slopes<kStreamAtOnce, true>(own, own, n, kStep, f,
                                        finish_row(loss, nll, row, target, at_target, weight, seed, all, f));
    }
    show_to_bulk_copies();
    done[k & 1].arrive();
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
  const A* w = weights.defined() ? data<const A>(weights) : nullptr;
  const auto math = [&]<bool kMayCap>() {
    return RowLoss<A, kMayCap>{static_cast<A>(softcap), softcap > 0 ? static_cast<A>(1 / softcap) : A(0),
                               static_cast<A>(z_loss), seed.defined() ? data<const double>(seed) : nullptr};
  };
  const auto launch = [&]<bool kWhole, bool kHeld, bool kMayCap>() {
    constexpr auto kernel = cross_entropy_kernel<X, kWhole, kHeld, kMayCap>;
    const auto bytes = static_cast<size_t>(kHeld ? row_bytes : 0);
    CHECK(fits_shared<kernel>(bytes), "cross-entropy: a vocabulary of ", n);
    kernel<<<static_cast<unsigned>(logits.dim(0)), std::min(row_threads(n), kMostThreads), bytes, stream()>>>(
        data<A>(loss), data<A>(nll), d, data<const X>(logits), data<const int32_t>(targets), w,
        static_cast<int>(n), math.template operator()<kMayCap>());
  };
  if constexpr (std::is_same_v<X, bf16>) {
    const auto stream_rows = [&]<bool kMayCap>() {
      constexpr auto kernel = cross_entropy_stream_kernel<kMayCap>;
      static const int blocks = bulk_copies_serve<kernel>() ? of_device(cudaDevAttrMultiProcessorCount) : 0;
      const auto bytes = static_cast<size_t>(2 * row_bytes);
      if (blocks == 0 || logits.dim(0) < int64_t{kLeastRows} * blocks || !fits_shared<kernel>(bytes))
        return false;
      kernel<<<static_cast<unsigned>(blocks), kStreamThreads + kWarp, bytes, stream()>>>(
          data<float>(loss), data<float>(nll), d, data<const bf16>(logits), data<const int32_t>(targets), w,
          static_cast<int>(n), static_cast<int>(logits.dim(0)), math.template operator()<kMayCap>());
      return true;
    };
    const bool streams = holds && logits.dim(0) <= INT32_MAX;
    if (streams &&
        (softcap == 0 ? stream_rows.template operator()<false>() : stream_rows.template operator()<true>()))
      return;
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
