#include "autograd/ops/rotary.h"

#include <algorithm>
#include <cmath>

#include "autograd/cuda/early.cuh"
#include "autograd/cuda/rows.cuh"

namespace weft::cuda {
namespace {

constexpr int kMostTokens = 8, kMostParts = 3;
constexpr int64_t kAngleBytes = 32 << 10;

// Of each head `turning` places turn two vectors, and `staying` more copy one; `end` counts the places of a
// token up to and with this part.
template <class T>
struct Part {
  T* y;
  const T* x;
  int64_t y_pitch, x_pitch;
  int width, turning, staying, end;
};
template <class T>
struct Parts {
  Part<T> of[kMostParts];
  int count;
};

// A block turns `tokens` tokens: their angles once, in f64, then all heads by them. V features at a time. It
// starts early where it may read ahead of the wait where a token stands, which is known before what it turns.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    rotary_kernel(const __grid_constant__ Parts<T> parts, const int32_t* position, int64_t n, int tokens,
                  int pairs, double theta, Acc<T> turn) {
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
  wait_for_earlier();
  __syncthreads();
  const uint32_t of_token = parts.of[parts.count - 1].end, all = static_cast<uint32_t>(count) * of_token;
  for (uint32_t i = threadIdx.x; i < all; i += kThreads) {
    const uint32_t t = i / of_token;
    int place = static_cast<int>(i - t * of_token), before = 0;
    Part<T> p = parts.of[0];
#pragma unroll
    for (int k = 1; k < kMostParts; ++k)
      if (k < parts.count && place >= parts.of[k - 1].end) {
        p = parts.of[k];
        before = parts.of[k - 1].end;
      }
    place -= before;
    const int of_head = p.turning + p.staying, head = place / of_head;
    place -= head * of_head;
    const T* from = p.x + (first + t) * p.x_pitch + int64_t{head} * p.width;
    T* to = p.y + (first + t) * p.y_pitch + int64_t{head} * p.width;
    if (place >= p.turning) {
      const int j = 2 * p.turning * V + (place - p.turning) * V;
      store<true, V>(to + j, load<true, V>(from + j, V), V);
      continue;
    }
    const int j = place * V;
    const auto a = load<true, V>(from + j, V), b = load<true, V>(from + pairs + j, V);
    const A *c = cosine + t * pairs + j, *s = sine + t * pairs + j;
    Vector<T, V> u, v;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const A m = A(a.v[e]), q = A(b.v[e]);
      u.v[e] = static_cast<T>(m * c[e] - q * s[e]);
      v.v[e] = static_cast<T>(q * c[e] + m * s[e]);
    }
    store<true, V>(to + j, u, V);
    store<true, V>(to + pairs + j, v, V);
  }
}

template <class T, int V>
void rotary_as(const std::vector<RotaryPart>& parts, const Tensor& position, double theta, int64_t pairs,
               double turn) {
  using A = Acc<T>;
  Parts<T> places{{}, static_cast<int>(parts.size())};
  int64_t end = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const RotaryPart& p = parts[i];
    const int64_t turning = pairs / V, staying = p.y.raw() == p.x.raw() ? 0 : p.x.dim(2) / V - 2 * turning;
    end += p.x.dim(1) * (turning + staying);
    CHECK(end < (int64_t{1} << 28), "rotary: a token of ", end, " places");
    places.of[i] = {data<T>(p.y),
                    data<const T>(p.x),
                    p.y.pitch(),
                    p.x.pitch(),
                    static_cast<int>(p.x.dim(2)),
                    static_cast<int>(turning),
                    static_cast<int>(staying),
                    static_cast<int>(end)};
  }
  const int64_t n = position.dim(0);
  if (n == 0 || end == 0) return;
  const auto bytes = static_cast<int64_t>(2 * sizeof(A)) * pairs;  // of a token's angles
  CHECK(bytes <= kAngleBytes, "rotary: ", 2 * pairs, " features are more than the GPU kernel takes");
  const int64_t tokens = bytes == 0 ? kMostTokens : std::min<int64_t>(kMostTokens, kAngleBytes / bytes);
  const auto blocks = static_cast<unsigned>((n + tokens - 1) / tokens);
  rotary_kernel<T, V><<<blocks, kThreads, static_cast<size_t>(tokens * bytes + pairs * 8), stream()>>>(
      places, data<const int32_t>(position), n, static_cast<int>(tokens), static_cast<int>(pairs), theta,
      static_cast<A>(turn));
  if (!is_recorded(position.raw())) starts_early();  // what the recording itself makes may be under way
  check_launch("rotary");
}

}  // namespace

void rotary(const std::vector<RotaryPart>& parts, const Tensor& position, double theta, int64_t rotated,
            double turn) {
  if (parts.size() > kMostParts) {  // not that anybody asks for it
    rotary({parts.begin(), parts.begin() + kMostParts}, position, theta, rotated, turn);
    return rotary({parts.begin() + kMostParts, parts.end()}, position, theta, rotated, turn);
  }
  const int64_t pairs = rotated / 2;
  with_float(parts[0].x.dtype(), [&]<class T>() {
    constexpr int V = Pack<T>::kSize;
    const bool whole = pairs % V == 0 && std::all_of(parts.begin(), parts.end(), [](const RotaryPart& p) {
                         return aligned(p.y.raw()) && aligned(p.x.raw()) && p.x.pitch() % V == 0 &&
                                p.y.pitch() % V == 0 && p.x.dim(2) % V == 0;
                       });
    if (whole)
      rotary_as<T, V>(parts, position, theta, pairs, turn);
    else
      rotary_as<T, 1>(parts, position, theta, pairs, turn);
  });
}

}  // namespace weft::cuda
