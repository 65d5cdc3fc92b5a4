#include "autograd/ops/rotary.h"

#include <cmath>

#include "autograd/cuda/rows.cuh"

namespace weft::cuda {
namespace {

constexpr int kMostTokens = 8;
constexpr int64_t kAngleBytes = 32 << 10;

// A block turns `tokens` tokens: their angles once, in f64, then all heads by them. V features at a time.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    rotary_kernel(T* y, int64_t y_pitch, const T* x, int64_t x_pitch, const int32_t* position, int64_t n,
                  int tokens, int heads, int width, int pairs, double theta, Acc<T> turn) {
  using A = Acc<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  double* frequency = reinterpret_cast<double*>(shared);
  A *cosine = reinterpret_cast<A*>(frequency + pairs), *sine = cosine + tokens * pairs;  // (tokens, pairs)
  const int64_t first = int64_t{blockIdx.x} * tokens;
  const int count = static_cast<int>(min(int64_t{tokens}, n - first));
  for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kThreads)
    frequency[i] = pow(theta, -static_cast<double>(i) / static_cast<double>(pairs));
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < count * pairs; i += kThreads) {
    const int t = i / pairs;
    double s, c;
    sincos(static_cast<double>(position[first + t]) * frequency[i - t * pairs], &s, &c);
    cosine[i] = static_cast<A>(c);
    sine[i] = turn * static_cast<A>(s);
  }
  __syncthreads();
  // Of each head `turning` places turn two vectors, and `staying` more copy one.
  const int turning = pairs / V, staying = (width - 2 * pairs) / V, places = turning + staying;
  const uint32_t all = static_cast<uint32_t>(count) * heads * places;
  for (uint32_t i = threadIdx.x; i < all; i += kThreads) {
    const uint32_t row = i / places, t = row / heads;
    const int place = static_cast<int>(i - row * places);
    const int64_t head = int64_t{row - t * heads} * width;
    const T* from = x + (first + t) * x_pitch + head;
    T* to = y + (first + t) * y_pitch + head;
    if (place >= turning) {
      const int j = 2 * pairs + (place - turning) * V;
      store<true, V>(to + j, load<true, V>(from + j, V), V);
      continue;
    }
    const int j = place * V;
    const auto a = load<true, V>(from + j, V), b = load<true, V>(from + pairs + j, V);
    const A *c = cosine + t * pairs + j, *s = sine + t * pairs + j;
    Vector<T, V> u, v;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const A p = A(a.v[e]), q = A(b.v[e]);
      u.v[e] = static_cast<T>(p * c[e] - q * s[e]);
      v.v[e] = static_cast<T>(q * c[e] + p * s[e]);
    }
    store<true, V>(to + j, u, V);
    store<true, V>(to + pairs + j, v, V);
  }
}

}  // namespace

void rotary(const Tensor& y, const Tensor& x, const Tensor& position, double theta, int64_t rotated,
            double turn) {
  if (y.numel() == 0) return;
  const int64_t n = x.dim(0), heads = x.dim(1), width = x.dim(2), pairs = rotated / 2;
  CHECK(heads * width < (int64_t{1} << 28), "rotary: a token of ", heads * width, " elements");
  with_float(x.dtype(), [&]<class T>() {
    using A = Acc<T>;
    constexpr int V = Pack<T>::kSize;
    const auto bytes = static_cast<int64_t>(2 * sizeof(A)) * pairs;  // of a token's angles
    CHECK(bytes <= kAngleBytes, "rotary: ", rotated, " features are more than the GPU kernel takes");
    const int64_t tokens = bytes == 0 ? kMostTokens : std::min<int64_t>(kMostTokens, kAngleBytes / bytes);
    const auto blocks = static_cast<unsigned>((n + tokens - 1) / tokens);
    const bool whole = aligned(y.raw()) && aligned(x.raw()) && x.pitch() % V == 0 && y.pitch() % V == 0 &&
                       width % V == 0 && pairs % V == 0;
    const auto launch = [&](auto kernel) {
      kernel<<<blocks, kThreads, static_cast<size_t>(tokens * bytes + pairs * 8), stream()>>>(
          data<T>(y), y.pitch(), data<const T>(x), x.pitch(), data<const int32_t>(position), n,
          static_cast<int>(tokens), static_cast<int>(heads), static_cast<int>(width), static_cast<int>(pairs),
          theta, static_cast<A>(turn));
    };
    if (whole)
      launch(rotary_kernel<T, V>);
    else
      launch(rotary_kernel<T, 1>);
  });
  check_launch("rotary");
}

}  // namespace weft::cuda
