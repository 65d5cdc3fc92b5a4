#pragma once
// How kernels are written here: `map` for y[i] = f(x[i], ...), `each` for anything with an index, and sums of
// a block in a fixed order, so that the same sizes give the same bits.

#undef NDEBUG  // for REQUIRE_ON_DEVICE
#include <algorithm>
#include <cassert>

#include "autograd/cuda/runtime.h"

namespace weft::cuda {

// Elements of a tensor for a kernel; null if it is undefined.
template <class T>
T* data(const Tensor& x) {
  CHECK(!x.defined() || x.device() == Device::cuda, "a kernel for the GPU was given a tensor on ",
        name_of(x.device()));
  return static_cast<T*>(x.raw());
}

// What a kernel cannot throw for: says where, and ends the kernel and with it the program, in every build.
#define REQUIRE_ON_DEVICE(condition) assert(condition)

inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

// Whether a launch of `kernel` may ask for so many bytes of dynamic shared memory. The limit is raised once,
// to the most that the card has: were it set to what each launch needs, ranks that are threads of one process
// would lower it between another's setting and its launch.
template <auto kernel>
bool fits_shared(size_t bytes) {
  static const int most = [] {
    cudaFuncAttributes of_kernel{};
    CUDA_CHECK(cudaFuncGetAttributes(&of_kernel, kernel));
    const int dynamic =
        of_device(cudaDevAttrMaxSharedMemoryPerBlockOptin) - static_cast<int>(of_kernel.sharedSizeBytes);
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic));
    return dynamic;
  }();
  return bytes <= static_cast<size_t>(most);
}

// 16 bytes, moved in one access.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T v[kSize];
};

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;

inline unsigned blocks_for(int64_t n, int threads = kThreads) {
  return static_cast<unsigned>(std::min((n + threads - 1) / threads, kMaxBlocks));
}

template <class F>
__global__ void __launch_bounds__(kThreads) each_kernel(int64_t n, F f) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride) f(i);
}

// f(i) for each i of [0, n), in any order.
template <class F>
void each(int64_t n, F f) {
  if (n == 0) return;
  each_kernel<<<blocks_for(n), kThreads, 0, stream()>>>(n, f);
  check_launch("each");
}

// The first `packs` packs by packs, what is left by elements.
template <class T, class F, class... X>
__global__ void __launch_bounds__(kThreads) map_kernel(int64_t n, int64_t packs, T* y, F f, const X*... x) {
  constexpr int kSize = Pack<T>::kSize;
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x,
                stride = int64_t{gridDim.x} * blockDim.x;
  const auto pack = [&](const Pack<X>... p) {
    Pack<T> out;
#pragma unroll
    for (int j = 0; j < kSize; ++j) out.v[j] = static_cast<T>(f(Acc<X>(p.v[j])...));
    return out;
  };
  for (int64_t i = first; i < packs; i += stride)
    reinterpret_cast<Pack<T>*>(y)[i] = pack(reinterpret_cast<const Pack<X>*>(x)[i]...);
  for (int64_t i = packs * kSize + first; i < n; i += stride) y[i] = static_cast<T>(f(Acc<X>(x[i])...));
}

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// y[i] = f(x[i], ...) over n elements of one size, each x in its accumulator type.
template <class T, class F, class... X>
void map(int64_t n, T* y, F f, const X*... x) {
  static_assert(((sizeof(X) == sizeof(T)) && ...), "map: one size of element");
  if (n == 0) return;
  const int64_t packs = (aligned(y) && ... && aligned(x)) ? n / Pack<T>::kSize : 0;
  map_kernel<<<blocks_for(packs > 0 ? packs : n), kThreads, 0, stream()>>>(n, packs, y, f, x...);
  check_launch("map");
}

// i / n, leaving i % n in i; in 32 bits where they suffice, which is many times faster.
__device__ inline int64_t divide(int64_t& i, int64_t n) {
  int64_t quotient;
  if (((i | n) >> 32) == 0) {
    quotient = static_cast<uint32_t>(i) / static_cast<uint32_t>(n);
  } else {
    quotient = i / n;
  }
  i -= quotient * n;
  return quotient;
}

constexpr unsigned kWarp = 32;

template <class A>
__device__ A warp_sum(A value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}
template <class A>
__device__ A warp_max(A value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const A other = __shfl_xor_sync(0xffffffffu, value, step);
    value = other > value ? other : value;
  }
  return value;
}

// Over all threads of a block, a multiple of 32 of them; every thread gets the result. Whoever calls twice
// may: the first barrier keeps the calls apart.
template <class A>
__device__ A block_sum(A value) {
  __shared__ A parts[kWarp];
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  value = warp_sum(value);
  __syncthreads();
  if (lane == 0) parts[warp] = value;
  __syncthreads();
  return warp_sum(lane < warps ? parts[lane] : A(0));
}
template <class A>
__device__ A block_max(A value) {
  __shared__ A parts[kWarp];
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  value = warp_max(value);
  __syncthreads();
  if (lane == 0) parts[warp] = value;
  __syncthreads();
  return warp_max(lane < warps ? parts[lane] : parts[0]);
}

// Threads of a block that works on one row of `width` elements.
inline int row_threads(int64_t width) {
  int threads = 32;
  while (threads < 1024 && threads < width / 4) threads *= 2;
  return threads;
}

}  // namespace weft::cuda
