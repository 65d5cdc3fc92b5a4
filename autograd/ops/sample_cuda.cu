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

__device__ float float_of(uint32_t key) {
  return __uint_as_float((key >> 31) != 0 ? key & 0x7fffffffu : ~key);
}

// The running sum over the block's threads, in one order.
template <class A>
__device__ A running_sum(A* space, A value) {
  space[threadIdx.x] = value;
  for (int step = 1; step < kDrawThreads; step *= 2) {
    __syncthreads();
    const A before = static_cast<int>(threadIdx.x) >= step ? space[threadIdx.x - step] : 0;
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
  double temperature, top_p;
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
  uint32_t count = kept;
  if (d.top_p < 1) {
    double reached = weights[0];
    for (count = 1; count < kept && reached < d.top_p * total; ++count) reached += weights[count];
    total = reached;
  }
  double left = total * d.random.uniform(static_cast<uint64_t>(index[blockIdx.x]));
  uint32_t place = 0;
  while (place + 1 < count && (left -= weights[place]) > 0) ++place;
  to[blockIdx.x] = static_cast<int32_t>(at(place));
}

// Top-p of a whole row, without a sort: where the running sum of weights, from the largest key down, reaches
// the share, and then where it reaches the draw, is found digit by digit of the key. For this a weight is a
// whole number of units, its mass: sums of masses are the same in any order, so threads may add as they come.
constexpr int kDigitBits = 11, kFirstShift = 32 - kDigitBits;  // the last digit, of three, has ten
constexpr int kBins = 1 << kDigitBits;
static_assert(kBins == 2 * kDrawThreads && kBins % kParts == 0);

struct Weigher {
  double top, temperature, units;
  __device__ uint64_t mass(float z) const {
    const double weight = exp((static_cast<double>(z) - top) / temperature);
    return weight > 0 ? __double2ull_rn(weight * units) : 0;  // NaN weighs nothing
  }
};

// `n` of them sum to less than 2^63.
__device__ Weigher weigher_of(const float* highs, const Draw& d) {
  const float high = threadIdx.x < kParts ? highs[threadIdx.x] : -INFINITY;
  return {block_max(high), d.temperature, exp2(static_cast<double>(__clzll(d.n) - 2))};
}

// Sums of masses, in halves: shared memory adds 32 bits at a time.
struct Bins {
  uint32_t low[kBins], high[kBins];
  __device__ void clear() {
    for (unsigned i = threadIdx.x; i < kBins; i += blockDim.x) low[i] = high[i] = 0;
    __syncthreads();
  }
  __device__ void add(uint32_t bin, uint64_t mass) {
    const auto more = static_cast<uint32_t>(mass);
    const uint32_t carried = atomicAdd(&low[bin], more) + more < more ? 1 : 0;
    if (const uint32_t rest = static_cast<uint32_t>(mass >> 32) + carried; rest != 0)
      atomicAdd(&high[bin], rest);
  }
  __device__ uint64_t mass(unsigned bin) const { return uint64_t{high[bin]} << 32 | low[bin]; }
};

// The largest logit of each part of a row, and no mass.
__global__ void __launch_bounds__(kThreads)
    highs_kernel(float* highs, uint64_t* masses, const float* logits, const __grid_constant__ Draw d) {
  wait_for_earlier();
  const float* z = logits + blockIdx.y * d.pitch;
  const int64_t end = part_begin(d.n, blockIdx.x + 1);
  float high = -INFINITY;
  for (int64_t i = part_begin(d.n, blockIdx.x) + threadIdx.x; i < end; i += kThreads)
    high = z[i] > high ? z[i] : high;
  high = block_max(high);
  if (threadIdx.x == 0) highs[blockIdx.y * kParts + blockIdx.x] = high;
  constexpr unsigned kMine = kBins / kParts;
  if (threadIdx.x < kMine) masses[blockIdx.y * kBins + blockIdx.x * kMine + threadIdx.x] = 0;
}

// The mass of each first digit of a row.
__global__ void __launch_bounds__(kThreads)
    masses_kernel(uint64_t* masses, const float* highs, const float* logits, const __grid_constant__ Draw d) {
  __shared__ Bins bins;
  bins.clear();
  wait_for_earlier();
  const Weigher weigher = weigher_of(highs + blockIdx.y * kParts, d);
  const float* z = logits + blockIdx.y * d.pitch;
  const int64_t end = part_begin(d.n, blockIdx.x + 1);
  for (int64_t i = part_begin(d.n, blockIdx.x) + threadIdx.x; i < end; i += kThreads)
    bins.add(key_of(z[i]) >> kFirstShift, weigher.mass(z[i]));
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads)
    if (const uint64_t mass = bins.mass(i); mass != 0)
      atomicAdd(reinterpret_cast<unsigned long long*>(&masses[blockIdx.y * kBins + i]), mass);
}

// Where the running mass of a row reaches what is wanted: a key, the mass of a logit that has it, and how
// much is missing when the logits with that key begin.
struct Reached {
  uint32_t key;
  uint64_t mass, missing;
  __device__ uint64_t place() const { return (missing - 1) / mass; }  // among equal logits
};

__device__ Reached reach(uint64_t wanted, const float* z, int64_t n, const uint64_t* masses,
                         const Weigher& weigher, Bins& bins, uint64_t* space) {
  __shared__ uint32_t digit;
  __shared__ uint64_t missing;
  constexpr int kAhead = 4;  // loads in flight
  uint32_t prefix = 0, known = 0;
  for (int shift = kFirstShift; known != ~0u; shift = max(0, shift - kDigitBits)) {
    if (known != 0) {
      bins.clear();
      for (int64_t from = 0; from < n; from += kAhead * kDrawThreads) {
        float ahead[kAhead];
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          const int64_t i = from + j * kDrawThreads + threadIdx.x;
          ahead[j] = i < n ? z[i] : -INFINITY;  // weighs nothing
        }
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          const uint32_t key = key_of(ahead[j]);
          const bool counted = (key & known) == prefix;
          const unsigned all = __ballot_sync(~0u, counted);
          if (!counted) continue;
          const unsigned alike = __match_any_sync(all, key);  // one addition for equal logits of a warp
          if (threadIdx.x % kWarp == static_cast<unsigned>(__ffs(static_cast<int>(alike)) - 1))
            bins.add((key & ~known) >> shift, __popc(alike) * weigher.mass(ahead[j]));
        }
      }
      __syncthreads();
    }
    const unsigned last = kBins - 1 - 2 * threadIdx.x;  // a thread has this bin and the one below
    const uint64_t mine = known != 0 ? bins.mass(last) : masses[last],
                   both = mine + (known != 0 ? bins.mass(last - 1) : masses[last - 1]);
    const uint64_t upto = running_sum(space, both), before = upto - both;
    if (before < wanted && wanted <= upto) {
      const bool below = before + mine < wanted;
      digit = last - (below ? 1 : 0);
      missing = wanted - before - (below ? mine : 0);
    }
    __syncthreads();
    prefix |= digit << shift;
    wanted = missing;
    known = ~0u << shift;
  }
  return {prefix, weigher.mass(float_of(prefix)), wanted};
}

// The index of the logit with this key before which come `place` others.
__device__ void find(int32_t* to, uint32_t key, uint64_t place, const float* z, int64_t n) {
  constexpr unsigned kWarps = kDrawThreads / kWarp;
  __shared__ uint32_t counts[kWarps];
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t begin = n * warp / kWarps, end = n * (warp + 1) / kWarps;
  const auto votes = [&](int64_t from) {
    const int64_t i = from + lane;
    return __ballot_sync(~0u, i < end && key_of(z[i]) == key);
  };
  uint32_t count = 0;
  for (int64_t from = begin; from < end; from += kWarp) count += __popc(votes(from));
  if (lane == 0) counts[warp] = count;
  __syncthreads();
  for (unsigned w = 0; w < warp; ++w) {
    if (place < counts[w]) return;
    place -= counts[w];
  }
  if (place >= count) return;
  for (int64_t from = begin; from < end; from += kWarp) {
    const unsigned equal = votes(from), here = __popc(equal);
    if (place < here) {
      if ((equal >> lane & 1) != 0 && __popc(equal & ((1u << lane) - 1)) == place)
        *to = static_cast<int32_t>(from + lane);
      return;
    }
    place -= here;
  }
}

__global__ void __launch_bounds__(kDrawThreads)
    draw_top_p_kernel(int32_t* to, const float* logits, const int32_t* index, const float* highs,
                      const uint64_t* masses, const __grid_constant__ Draw d) {
  __shared__ Bins bins;
  __shared__ uint64_t space[kDrawThreads];
  wait_for_earlier();
  const float* z = logits + blockIdx.x * d.pitch;
  masses += blockIdx.x * kBins;
  const Weigher weigher = weigher_of(highs + blockIdx.x * kParts, d);
  const uint64_t total = block_sum(masses[threadIdx.x] + masses[threadIdx.x + kDrawThreads]);
  if (total == 0) {  // of NaN and infinities
    if (threadIdx.x == 0) to[blockIdx.x] = static_cast<int32_t>(d.n - 1);
    return;
  }
  const auto share = [](uint64_t mass, double part) {
    const uint64_t some = __double2ull_ru(static_cast<double>(mass) * part);
    return max(uint64_t{1}, min(mass, some));
  };
  const uint64_t bound = share(total, d.top_p);
  const Reached last = reach(bound, z, d.n, masses, weigher, bins, space);
  const uint64_t nucleus = bound - last.missing + (last.place() + 1) * last.mass;  // with the last one whole
  const uint64_t drawn = share(nucleus, d.random.uniform(static_cast<uint64_t>(index[blockIdx.x])));
  const Reached at = reach(drawn, z, d.n, masses, weigher, bins, space);
  find(to + blockIdx.x, at.key, at.place(), z, d.n);
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
  const Draw d{n, logits.pitch(), kept, draws.temperature, draws.top_p, {draws.seed, draws.stream, 0}};
  const auto rows = static_cast<unsigned>(to.dim(0));
  const auto* z = data<const float>(logits);
  if (draws.temperature == 0)
    largest_kernel<<<rows, kDrawThreads, 0, stream()>>>(data<int32_t>(to), z, n, logits.pitch());
  else if (kept < n)
    draw_of_best_kernel<<<rows, kDrawThreads, 0, stream()>>>(data<int32_t>(to), z, data<const int32_t>(index),
                                                             d);
  else if (draws.top_p < 1) {
    const Tensor highs = empty({to.dim(0), kParts}, Dtype::f32, Device::cuda),
                 masses = empty({to.dim(0), kBins}, Dtype::f64, Device::cuda);  // 64 bits
    auto* bins = static_cast<uint64_t*>(masses.raw());
    const dim3 parts(kParts, rows);
    launch_early(highs_kernel, parts, kThreads, 0, data<float>(highs), bins, z, d);
    launch_early(masses_kernel, parts, kThreads, 0, bins, data<const float>(highs), z, d);
    launch_early(draw_top_p_kernel, rows, kDrawThreads, 0, data<int32_t>(to), z, data<const int32_t>(index),
                 data<const float>(highs), static_cast<const uint64_t*>(bins), d);
  } else {
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
