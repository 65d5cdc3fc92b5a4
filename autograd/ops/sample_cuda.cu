#include "autograd/cuda/early.cuh"
#include "autograd/ops/sample.h"
#include "autograd/philox.h"

namespace weft::cuda {
namespace {

constexpr int kDrawThreads = 1024, kMostKept = 1024;
constexpr int kDigits = 256;  // of a key, eight bits at a time

// Larger floats have larger keys; both zeros have one.
__device__ uint32_t key_of(float z) {
  const uint32_t bits = __float_as_uint(z + 0.f);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

// The running sum over the block's threads, in one order.
__device__ double running_sum(double* space, double value) {
  space[threadIdx.x] = value;
  for (int step = 1; step < kDrawThreads; step *= 2) {
    __syncthreads();
    const double before = static_cast<int>(threadIdx.x) >= step ? space[threadIdx.x - step] : 0;
    __syncthreads();
    space[threadIdx.x] += before;
  }
  __syncthreads();
  return space[threadIdx.x];
}

__global__ void __launch_bounds__(kDrawThreads)
    largest_kernel(int32_t* to, const float* logits, int64_t n, int64_t pitch) {
  const float* z = logits + blockIdx.x * pitch;
  uint64_t best = 0;  // key, then the index from its end
  for (int64_t i = threadIdx.x; i < n; i += kDrawThreads)
    best = max(best, uint64_t{key_of(z[i])} << 32 | (0xffffffffu - static_cast<uint32_t>(i)));
  best = block_max(best);
  if (threadIdx.x == 0) to[blockIdx.x] = static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(best));
}

struct Draw {
  int64_t n, pitch, kept;
  double temperature;
  RandomKey random;
};

constexpr int kParts = 64;  // of a row, so that many multiprocessors share its exponentials

// What a part of a row has: its largest logit, and the sum of weights beside that one's.
struct Part {
  double high, sum;
};

__device__ int64_t part_begin(int64_t n, int64_t part) { return n * part / kParts; }

__global__ void __launch_bounds__(kThreads)
    parts_kernel(Part* parts, const float* logits, const __grid_constant__ Draw d) {
  wait_for_earlier();
  const float* z = logits + blockIdx.y * d.pitch;
  const int64_t begin = part_begin(d.n, blockIdx.x), end = part_begin(d.n, blockIdx.x + 1);
  float high = -INFINITY;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) high = z[i] > high ? z[i] : high;
  const double top = block_max(high);
  double sum = 0;
  if (top > -INFINITY)
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads)
      sum += exp((static_cast<double>(z[i]) - top) / d.temperature);
  sum = block_sum(sum);
  if (threadIdx.x == 0) parts[blockIdx.y * kParts + blockIdx.x] = {top, sum};
}

// One block a row: the part where the running sum first reaches the draw; there a thread has a run, and walks
// it if the draw falls there.
__global__ void __launch_bounds__(kDrawThreads)
    draw_kernel(int32_t* to, const float* logits, const int32_t* index, const Part* parts,
                const __grid_constant__ Draw d) {
  __shared__ double space[kDrawThreads];
  __shared__ double left;  // of the draw, when the part begins
  __shared__ int64_t begin, end;
  __shared__ int32_t chosen;
  wait_for_earlier();
  const float* z = logits + blockIdx.x * d.pitch;
  parts += blockIdx.x * kParts;
  double top = -INFINITY;
  for (int i = 0; i < kParts; ++i) top = parts[i].high > top ? parts[i].high : top;
  if (threadIdx.x == 0) {
    const auto share = [&](int i) { return parts[i].sum * exp((parts[i].high - top) / d.temperature); };
    double total = 0;
    for (int i = 0; i < kParts; ++i) total += parts[i].sum > 0 ? share(i) : 0;
    left = total * d.random.uniform(static_cast<uint64_t>(index[blockIdx.x]));
    int part = 0;
    for (double mine; part + 1 < kParts; ++part, left -= mine) {
      mine = parts[part].sum > 0 ? share(part) : 0;
      if (mine > 0 && left <= mine) break;
    }
    begin = part_begin(d.n, part), end = part_begin(d.n, part + 1);
    chosen = static_cast<int32_t>(max(begin, end - 1));
  }
  __syncthreads();
  const int64_t run = (end - begin + kDrawThreads - 1) / kDrawThreads,
                first = min(end, begin + threadIdx.x * run), last = min(end, first + run);
  const auto weight = [&](int64_t i) { return exp((static_cast<double>(z[i]) - top) / d.temperature); };
  double sum = 0;
  for (int64_t i = first; i < last; ++i) sum += weight(i);
  const double upto = running_sum(space, sum), reached = threadIdx.x == 0 ? 0 : space[threadIdx.x - 1];
  if (first < last && left > reached && left <= upto) {
    double rest = left - reached;
    int64_t at = first;
    while (at + 1 < last && (rest -= weight(at)) > 0) ++at;
    chosen = static_cast<int32_t>(at);
  }
  __syncthreads();
  if (threadIdx.x == 0) to[blockIdx.x] = chosen;
}

// The best `kept` of a row in order, by their keys: digit by digit of the last of them, then sorted; and the
// draw among these.
__global__ void __launch_bounds__(kDrawThreads)
    draw_of_best_kernel(int32_t* to, const float* logits, const int32_t* index,
                        const __grid_constant__ Draw d) {
  __shared__ uint64_t best[kMostKept];  // as in largest_kernel
  __shared__ double weights[kMostKept];
  __shared__ int counts[kDigits];
  __shared__ uint32_t prefix, missing;
  __shared__ int taken;
  const float* z = logits + blockIdx.x * d.pitch;
  const auto kept = static_cast<uint32_t>(d.kept);
  if (threadIdx.x == 0) prefix = 0, missing = kept, taken = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = static_cast<int>(threadIdx.x); i < kDigits; i += kDrawThreads) counts[i] = 0;
    __syncthreads();
    const uint32_t known = shift == 24 ? 0 : ~0u << (shift + 8), wanted = prefix;
    for (int64_t from = 0; from < d.n; from += kDrawThreads) {
      const int64_t i = from + threadIdx.x;
      const uint32_t key = i < d.n ? key_of(z[i]) : 0;
      const bool counted = i < d.n && (key & known) == wanted;
      const unsigned digit = counted ? key >> shift & (kDigits - 1) : kDigits;
      const unsigned alike = __match_any_sync(~0u, digit);  // one addition for all of a warp
      if (counted && threadIdx.x % kWarp == static_cast<unsigned>(__ffs(static_cast<int>(alike)) - 1))
        atomicAdd(&counts[digit], __popc(alike));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = kDigits - 1;
      while (digit > 0 && counts[digit] < static_cast<int>(missing)) missing -= counts[digit--];
      prefix |= static_cast<uint32_t>(digit) << shift;
    }
    __syncthreads();
  }
  // `prefix` is the key of the last one kept, of which the first `missing` are.
  for (int i = static_cast<int>(threadIdx.x); i < kMostKept; i += kDrawThreads) best[i] = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < d.n; i += kDrawThreads)
    if (const uint32_t key = key_of(z[i]); key > prefix)
      best[atomicAdd(&taken, 1)] = uint64_t{key} << 32 | (0xffffffffu - static_cast<uint32_t>(i));
  __syncthreads();
  for (int64_t from = 0; from < d.n && missing > 0; from += kDrawThreads) {
    const int64_t i = from + threadIdx.x;
    const bool equal = i < d.n && key_of(z[i]) == prefix;
    const unsigned votes = __ballot_sync(~0u, equal);
    if (threadIdx.x % kWarp == 0) counts[threadIdx.x / kWarp] = __popc(votes);
    __syncthreads();
    uint32_t place = __popc(votes & ((1u << threadIdx.x % kWarp) - 1)), all = 0;
    for (unsigned w = 0; w < kDrawThreads / kWarp; ++w) {
      if (w < threadIdx.x / kWarp) place += counts[w];
      all += counts[w];
    }
    if (equal && place < missing)
      best[taken + place] = uint64_t{prefix} << 32 | (0xffffffffu - static_cast<uint32_t>(i));
    __syncthreads();
    if (threadIdx.x == 0) {
      const uint32_t now = min(all, missing);
      taken += static_cast<int>(now);
      missing -= now;
    }
    __syncthreads();
  }
  // Sorted from the largest (Batcher 1968); places that hold nothing are 0 and come last.
  int size = 2;
  while (size < static_cast<int>(kept)) size *= 2;
  for (int width = 2; width <= size; width *= 2)
    for (int step = width / 2; step > 0; step /= 2) {
      __syncthreads();
      const int i = static_cast<int>(threadIdx.x), j = i ^ step;
      if (i < size && j > i) {
        const uint64_t a = best[i], b = best[j];
        if ((a < b) == ((i & width) == 0)) best[i] = b, best[j] = a;
      }
    }
  __syncthreads();
  const auto at = [&](uint32_t i) { return 0xffffffffu - static_cast<uint32_t>(best[i]); };
  if (threadIdx.x < kept)
    weights[threadIdx.x] =
        exp((static_cast<double>(z[at(threadIdx.x)]) - static_cast<double>(z[at(0)])) / d.temperature);
  __syncthreads();
  if (threadIdx.x != 0) return;
  double total = 0;
  for (uint32_t i = 0; i < kept; ++i) total += weights[i];
  double left = total * d.random.uniform(static_cast<uint64_t>(index[blockIdx.x]));
  uint32_t place = 0;
  while (place + 1 < kept && (left -= weights[place]) > 0) ++place;
  to[blockIdx.x] = static_cast<int32_t>(at(place));
}

}  // namespace

void sample_rows(const Tensor& to, const Tensor& logits, const Tensor& index, const DrawOptions& draws) {
  const int64_t n = logits.dim(1);
  const int64_t kept = draws.top_k > 0 && draws.temperature > 0 ? std::min(draws.top_k, n) : n;
  if (logits.dtype() != Dtype::f32 || (kept < n && kept > kMostKept)) {
    const Tensor here = empty({to.dim(0)}, Dtype::i32, Device::cpu);
    cpu::sample_rows(here, logits.contiguous().to(Device::cpu), index.contiguous().to(Device::cpu), draws);
    return to.copy_from(here);
  }
  const Draw d{n, logits.pitch(), kept, draws.temperature, {draws.seed, draws.stream, 0}};
  const auto rows = static_cast<unsigned>(to.dim(0));
  const auto* z = data<const float>(logits);
  if (draws.temperature == 0)
    largest_kernel<<<rows, kDrawThreads, 0, stream()>>>(data<int32_t>(to), z, n, logits.pitch());
  else if (kept < n)
    draw_of_best_kernel<<<rows, kDrawThreads, 0, stream()>>>(data<int32_t>(to), z, data<const int32_t>(index),
                                                             d);
  else {
    const Tensor parts = empty({to.dim(0), kParts, 2}, Dtype::f64, Device::cuda);
    launch_early(parts_kernel, dim3(kParts, rows), kThreads, 0, static_cast<Part*>(parts.raw()), z, d);
    launch_early(draw_kernel, rows, kDrawThreads, 0, data<int32_t>(to), z, data<const int32_t>(index),
                 static_cast<const Part*>(parts.raw()), d);
  }
  check_launch("sample");
}

void increment(const Tensor& x, const Tensor& y) {
  int32_t *p = data<int32_t>(x), *q = data<int32_t>(y);
  each(x.numel(), [=] __device__(int64_t i) { ++p[i], ++q[i]; });
}

}  // namespace weft::cuda
