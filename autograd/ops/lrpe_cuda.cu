#include "autograd/ops/lrpe.h"

#include "autograd/cuda/early.cuh"
#include "autograd/cuda/rounded_math.cuh"
#include "autograd/ops/rows.h"

namespace weft::cuda {
namespace {

constexpr int kMostParts = 2;
// On the way back a block has this many vectors of channels and tokens at a time.
constexpr int kBlockVectors = 32, kBlockTokens = kThreads / kBlockVectors;

// Token t of x begins at t times its pitch, likewise of y. On the way back dx and dy stand beside them.
template <class T, class Y>
struct Part {
  const T* x;
  Y* y;
  T* dx;
  const Y* dy;
  int64_t x_pitch, y_pitch, dx_pitch, dy_pitch;
};
template <class T, class Y>
struct Parts {
  Part<T, Y> of[kMostParts];
  int count;
};

// The cosines and sines of V neighbouring channels.
template <class A, int V>
struct Turns {
  A cosine[V], sine[V];
  __device__ Turns(A position, const A* theta) {
#pragma unroll
    for (int e = 0; e < V; ++e) {
      double s, c;
      sincos(static_cast<double>(position) * static_cast<double>(theta[e]), &s, &c);
      cosine[e] = static_cast<A>(c);
      sine[e] = static_cast<A>(s);
    }
  }
};

// Features of x, rounded to its type.
template <class T, int V>
__device__ Vector<T, V> features(const Vector<Acc<T>, V>& x, const Acc<T> (&turn)[V]) {
  Vector<Acc<T>, V> y;
#pragma unroll
  for (int e = 0; e < V; ++e) y.v[e] = x.v[e] * turn[e];
  return narrow<T, V>(y);
}
template <class T, class Y, int V>
__device__ Vector<Y, V> held(const Vector<T, V>& x) {
  if constexpr (std::is_same_v<T, Y>)
    return x;
  else
    return widen<T, V>(x);
}

// V divides the size of a head.
template <class T, class Y, int V>
void forward_as(const Parts<T, Y>& parts, const Acc<T>* theta, const Acc<T>* position, int64_t n,
                int64_t heads, int64_t size) {
  using A = Acc<T>;
  const int64_t vectors = heads * size / V, of_head = size / V;
  each_early(n * vectors, [=] __device__(int64_t i) {
    int64_t vector = i;
    const int64_t t = divide(vector, vectors), j = vector * V;
    const int64_t to = divide(vector, of_head) * 2 * size + vector * V;
    const Turns<A, V> turns(position[t], theta + j);
#pragma unroll
    for (int k = 0; k < kMostParts; ++k) {
      if (k >= parts.count) break;
      const Part<T, Y>& p = parts.of[k];
      const auto x = widen<T, V>(load<true, V>(p.x + t * p.x_pitch + j, V));
      Y* const y = p.y + t * p.y_pitch + to;
      store<true, V>(y, held<T, Y, V>(features<T, V>(x, turns.cosine)), V);
      store<true, V>(y + size, held<T, Y, V>(features<T, V>(x, turns.sine)), V);
    }
  });
}

// A block of threads has some channels of a block of tokens, and leaves their sum of dtheta.
template <class T, class Y, int V>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const __grid_constant__ Parts<T, Y> parts, Acc<T>* dtheta, const Acc<T>* theta,
                    const Acc<T>* position, int64_t n, int64_t heads, int64_t size, int64_t rows) {
  using A = Acc<T>;
  __shared__ A sums[kBlockTokens][kBlockVectors * V];
  const int64_t channels = heads * size, j = (int64_t{blockIdx.x} * kBlockVectors + threadIdx.x) * V;
  const int64_t from = j / size * 2 * size + j % size;
  const int64_t begin = int64_t{blockIdx.y} * rows, end = min(n, begin + rows);
  A sum[V] = {};
  if (j < channels)
    for (int64_t t = begin + threadIdx.y; t < end; t += kBlockTokens) {
      const A at = position[t];
      const Turns<A, V> turns(at, theta + j);
#pragma unroll
      for (int k = 0; k < kMostParts; ++k) {
        if (k >= parts.count) break;
        const Part<T, Y>& p = parts.of[k];
        const auto x = widen<T, V>(load<true, V>(p.x + t * p.x_pitch + j, V));
        const auto u = widen<Y, V>(load<true, V>(p.dy + t * p.dy_pitch + from, V));
        const auto v = widen<Y, V>(load<true, V>(p.dy + t * p.dy_pitch + from + size, V));
        const auto cosine = widen<T, V>(features<T, V>(x, turns.cosine)),
                   sine = widen<T, V>(features<T, V>(x, turns.sine));
        Vector<A, V> dx;
#pragma unroll
        for (int e = 0; e < V; ++e) {
          dx.v[e] = u.v[e] * turns.cosine[e] + v.v[e] * turns.sine[e];
          sum[e] += at * (v.v[e] * cosine.v[e] - u.v[e] * sine.v[e]);
        }
        store<true, V>(p.dx + t * p.dx_pitch + j, narrow<T, V>(dx), V);
      }
    }
#pragma unroll
  for (int e = 0; e < V; ++e) sums[threadIdx.y][threadIdx.x * V + e] = sum[e];
  __syncthreads();
  const int own = static_cast<int>(threadIdx.y * kBlockVectors + threadIdx.x);
  const int64_t channel = int64_t{blockIdx.x} * kBlockVectors * V + own;
  if (own >= kBlockVectors * V || channel >= channels) return;
  A total = 0;
  for (int k = 0; k < kBlockTokens; ++k) total += sums[k][own];
  dtheta[blockIdx.y * channels + channel] = total;
}

template <class T, class Y, int V>
void backward_as(const Parts<T, Y>& parts, const Tensor& dtheta, const Tensor& theta,
                 const Tensor& position) {
  using A = Acc<T>;
  const int64_t n = position.numel(), channels = theta.numel();
  static_assert(kBlockVectors * V <= kThreads);
  const dim3 grid(static_cast<unsigned>((channels / V + kBlockVectors - 1) / kBlockVectors),
                  static_cast<unsigned>(dtheta.dim(0)));
  backward_kernel<T, Y, V><<<grid, dim3(kBlockVectors, kBlockTokens), 0, stream()>>>(
      parts, data<A>(dtheta), data<const A>(theta), data<const A>(position), n, theta.dim(0), theta.dim(1),
      row_blocks(n).size);
  check_launch("lrpe_backward");
}

// Four channels a thread: their angles are what takes the time.
constexpr int kChannels = 4;
bool by_vectors(const Tensor& x, int64_t size) {
  return aligned(x.raw()) && x.pitch() % kChannels == 0 && size % kChannels == 0;
}

void check_parts(size_t count) { CHECK(count <= kMostParts, "lrpe: ", count, " tensors on a GPU"); }

}  // namespace

void lrpe_forward(const std::vector<LrpePart>& parts, const Tensor& theta, const Tensor& position) {
  check_parts(parts.size());
  const int64_t n = position.numel(), heads = theta.dim(0), size = theta.dim(1);
  with_lrpe_types(parts[0].x.dtype(), parts[0].y.dtype(), [&]<class T, class Y>() {
    using A = Acc<T>;
    Parts<T, Y> places{{}, static_cast<int>(parts.size())};
    bool whole = true;
    for (size_t i = 0; i < parts.size(); ++i) {
      const LrpePart& p = parts[i];
      places.of[i] = {data<const T>(p.x), data<Y>(p.y), nullptr, nullptr, p.x.pitch(), p.y.pitch(), 0, 0};
      whole = whole && by_vectors(p.x, size) && by_vectors(p.y, size);
    }
    const auto *frequency = data<const A>(theta), *at = data<const A>(position);
    if (whole)
      forward_as<T, Y, kChannels>(places, frequency, at, n, heads, size);
    else
      forward_as<T, Y, 1>(places, frequency, at, n, heads, size);
  });
}

void lrpe_backward(const std::vector<LrpePart>& gradients, const std::vector<Tensor>& x, const Tensor& dtheta,
                   const Tensor& theta, const Tensor& position) {
  check_parts(x.size());
  if (dtheta.numel() == 0) return;
  with_lrpe_types(x[0].dtype(), gradients[0].y.dtype(), [&]<class T, class Y>() {
    Parts<T, Y> places{{}, static_cast<int>(x.size())};
    bool whole = true;
    for (size_t i = 0; i < x.size(); ++i) {
      const auto& [dx, dy] = gradients[i];
      places.of[i] = {data<const T>(x[i]), nullptr, data<T>(dx), data<const Y>(dy),
                      x[i].pitch(),        0,       dx.pitch(),  dy.pitch()};
      for (const Tensor& each : {x[i], dx, dy}) whole = whole && by_vectors(each, theta.dim(1));
    }
    if (whole)
      backward_as<T, Y, kChannels>(places, dtheta, theta, position);
    else
      backward_as<T, Y, 1>(places, dtheta, theta, position);
  });
}

}  // namespace weft::cuda
