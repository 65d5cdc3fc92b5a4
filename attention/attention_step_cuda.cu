// A new token of each document looks at all of its past: many blocks share the keys of a head, and a second
// kernel merges their partial results in a fixed order (README, "Merging partial attention"; Dao et al. 2023,
// "Flash-Decoding").

#include "attention/steps.h"
#include "autograd/cuda/early.cuh"

namespace weft::cuda {
namespace {

constexpr int kStepThreads = 128, kAbreast = 4;  // keys that a group of lanes has under way

// What a block reads of a document's past depends on that past alone.
__host__ __device__ int keys_of_block(int64_t keys) { return keys <= 4096 ? 128 : 256; }
int64_t most_blocks(int64_t keys) {
  return keys <= 4096 ? (keys + 127) / 128 : std::max<int64_t>(32, (keys + 255) / 256);
}

__device__ inline float exp2_of(float x) { return exp2f(x); }
__device__ inline double exp2_of(double x) { return exp2(x); }

template <class T>
struct StepAttention {
  const T *q, *k, *v;  // (M, H, D), (M, Hkv, D), (M, Hkv, E)
  const int32_t *position, *document;
  void* const* caches;
  T* o;
  Acc<T>*lse, *part_o, *part_lse;  // parts (M, H, splits, E) and (M, H, splits)
  int heads, kv_heads, group, d, e, splits;
  int64_t window;
  bool alibi;
  Acc<T> scale;

  // Of a document whose new token is its `at`-th: the first key that it sees.
  __device__ int64_t first(int64_t at) const { return window > 0 && at + 1 > window ? at + 1 - window : 0; }
  // As alibi_slopes.
  __device__ Acc<T> slope(int head) const {
    if (!alibi) return 0;
    int power = 1;
    while (2 * power <= heads) power *= 2;
    const double i = head < power ? 2.0 * (head + 1) : 2.0 * (head - power) + 1;
    return static_cast<Acc<T>>(exp2(-4.0 * i / power));
  }
};

template <class T, int V>
struct alignas(V * sizeof(T)) Few {
  T v[V];
};

constexpr double kLog2E = 1.4426950408889634;

// A block: some keys of a key head of a document, and up to G of the query heads that read it. L lanes share
// a key, P packs of V features a lane. Scores are in units of log 2.
template <class T, int V, int L, int P, int G>
__global__ void __launch_bounds__(kStepThreads)
    attention_step_kernel(const __grid_constant__ StepAttention<T> p) {
  using W = Acc<T>;
  using Features = Few<T, V>;
  constexpr int kGroups = kStepThreads / L;
  extern __shared__ __align__(16) unsigned char shared[];
  const int64_t m = blockIdx.z, at = p.position[m], seen = p.first(at);
  const int keys = keys_of_block(at + 1 - seen);
  const int64_t begin = seen + int64_t{blockIdx.x} * keys, end = min(begin + keys, at + 1);
  if (begin >= end) return;
  const int bundles = (p.group + G - 1) / G, kv = static_cast<int>(blockIdx.y) / bundles,
            head0 = kv * p.group + static_cast<int>(blockIdx.y) % bundles * G,
            count = min(G, (kv + 1) * p.group - head0);
  const int lane = static_cast<int>(threadIdx.x) % L, own = static_cast<int>(threadIdx.x) / L;
  void* const* cache = p.caches + 4 * m;
  const int64_t k_pitch = int64_t{p.kv_heads} * p.d, v_pitch = int64_t{p.kv_heads} * p.e;
  T *k_past = static_cast<T*>(cache[0]) + int64_t{kv} * p.d,
    *v_past = static_cast<T*>(cache[1]) + int64_t{kv} * p.e;
  const T *k_new = p.k + m * k_pitch + int64_t{kv} * p.d, *v_new = p.v + m * v_pitch + int64_t{kv} * p.e;
  Features k[kAbreast][P], v[kAbreast][P];
  // Of the keys from `base` on those in [from, upto).
  const auto fetch = [&](int64_t base, int64_t from, int64_t upto, const T* k_rows, const T* v_rows) {
#pragma unroll
    for (int a = 0; a < kAbreast; ++a) {
      const int64_t row = base + a * kGroups + own;
      if (row < from || row >= upto) continue;
#pragma unroll
      for (int i = 0; i < P; ++i) {
        const int f = (i * L + lane) * V;
        if (f < p.d) k[a][i] = *reinterpret_cast<const Features*>(k_rows + (row - from) * k_pitch + f);
        if (f < p.e) v[a][i] = *reinterpret_cast<const Features*>(v_rows + (row - from) * v_pitch + f);
      }
    }
  };
  const auto clear = [&] {
#pragma unroll
    for (int a = 0; a < kAbreast; ++a)
#pragma unroll
      for (int i = 0; i < P; ++i) k[a][i] = v[a][i] = Features{};
  };
  clear();
  fetch(begin, 0, min(end, at), k_past, v_past);  // the past was written a token ago
  wait_for_earlier();
  if (end == at + 1 && head0 == kv * p.group) {  // the new token joins the past, for the next step to read
    for (int i = static_cast<int>(threadIdx.x); i < p.d; i += kStepThreads)
      k_past[at * k_pitch + i] = k_new[i];
    for (int i = static_cast<int>(threadIdx.x); i < p.e; i += kStepThreads)
      v_past[at * v_pitch + i] = v_new[i];
    if (threadIdx.x == 0 && kv == 0) {
      static_cast<int32_t*>(cache[2])[at] = p.position[m];
      static_cast<int32_t*>(cache[3])[at] = p.document[m];
    }
  }
  W q[G][P][V], sum[G][P][V] = {}, top[G], total[G] = {}, slope[G];
#pragma unroll
  for (int g = 0; g < G; ++g) {
    top[g] = -W(INFINITY);
    slope[g] = g < count ? static_cast<W>(kLog2E) * p.slope(head0 + g) : W(0);
#pragma unroll
    for (int i = 0; i < P; ++i) {
      const int f = (i * L + lane) * V;
      Features x = {};
      if (g < count && f < p.d)
        x = *reinterpret_cast<const Features*>(p.q + (m * p.heads + head0 + g) * p.d + f);
#pragma unroll
      for (int j = 0; j < V; ++j) q[g][i][j] = static_cast<W>(kLog2E) * p.scale * static_cast<W>(x.v[j]);
    }
  }
  for (int64_t base = begin; base < end; base += kGroups * kAbreast) {
    if (base > begin) {
      clear();
      fetch(base, 0, min(end, at), k_past, v_past);
    }
    fetch(base, at, end, k_new, v_new);  // the new one
#pragma unroll
    for (int g = 0; g < G; ++g) {
      W s[kAbreast], highest = top[g];
#pragma unroll
      for (int a = 0; a < kAbreast; ++a) {
        const int64_t row = base + a * kGroups + own;
        W dot = 0;
#pragma unroll
        for (int i = 0; i < P; ++i)
#pragma unroll
          for (int j = 0; j < V; ++j) dot += q[g][i][j] * static_cast<W>(k[a][i].v[j]);
#pragma unroll
        for (int step = L / 2; step > 0; step /= 2) dot += __shfl_xor_sync(~0u, dot, step);
        s[a] = row < end ? dot - slope[g] * static_cast<W>(at - row) : -W(INFINITY);
        highest = s[a] > highest ? s[a] : highest;
      }
      const W shift = highest == -W(INFINITY) ? W(0) : highest, shrink = exp2_of(top[g] - shift);
      top[g] = highest;
      total[g] *= shrink;
#pragma unroll
      for (int i = 0; i < P; ++i)
#pragma unroll
        for (int j = 0; j < V; ++j) sum[g][i][j] *= shrink;
#pragma unroll
      for (int a = 0; a < kAbreast; ++a) {
        const W weight = exp2_of(s[a] - shift);
        total[g] += weight;
#pragma unroll
        for (int i = 0; i < P; ++i)
#pragma unroll
          for (int j = 0; j < V; ++j) sum[g][i][j] += weight * static_cast<W>(v[a][i].v[j]);
      }
    }
  }
  // The groups of lanes one after another.
  W *tops = reinterpret_cast<W*>(shared), *totals = tops + G * kGroups, *sums = totals + G * kGroups;
#pragma unroll
  for (int g = 0; g < G; ++g) {
    if (lane == 0) {
      tops[g * kGroups + own] = top[g];
      totals[g * kGroups + own] = total[g];
    }
#pragma unroll
    for (int i = 0; i < P; ++i) {
      const int f = (i * L + lane) * V;
#pragma unroll
      for (int j = 0; j < V; ++j)
        if (f < p.e) sums[int64_t{g * kGroups + own} * p.e + f + j] = sum[g][i][j];
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < count * p.e; i += kStepThreads) {
    const int g = i / p.e, f = i - g * p.e;
    W peak = -W(INFINITY), all = 0, y = 0;
    for (int x = 0; x < kGroups; ++x) peak = max(peak, tops[g * kGroups + x]);
    for (int x = 0; x < kGroups; ++x) {
      const W share = exp2_of(tops[g * kGroups + x] - peak);
      all += share * totals[g * kGroups + x];
      y += share * sums[int64_t{g * kGroups + x} * p.e + f];
    }
    const int64_t row = m * p.heads + head0 + g;
    const W lse = static_cast<W>(1 / kLog2E) * (peak + std::log2(all));
    if (p.splits == 1) {
      p.o[row * p.e + f] = static_cast<T>(y / all);
      if (f == 0) p.lse[row] = lse;
      continue;
    }
    p.part_o[(row * p.splits + blockIdx.x) * p.e + f] = y / all;
    if (f == 0) p.part_lse[row * p.splits + blockIdx.x] = lse;
  }
}

// A block a head of a document.
template <class T>
__global__ void __launch_bounds__(kStepThreads) merge_kernel(const __grid_constant__ StepAttention<T> p) {
  using W = Acc<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  W* weight = reinterpret_cast<W*>(shared);  // of each part
  wait_for_earlier();
  const int64_t row = blockIdx.x, at = p.position[row / p.heads], seen = p.first(at);
  const int keys = keys_of_block(at + 1 - seen);
  const int parts = static_cast<int>((at - seen) / keys) + 1;
  const W* lse = p.part_lse + row * p.splits;
  W peak = -W(INFINITY);
  for (int i = static_cast<int>(threadIdx.x); i < parts; i += kStepThreads) peak = max(peak, lse[i]);
  peak = block_max(peak);
  W all = 0;
  for (int i = static_cast<int>(threadIdx.x); i < parts; i += kStepThreads)
    all += weight[i] = exp2_of(static_cast<W>(kLog2E) * (lse[i] - peak));
  all = block_sum(all);  // with its barriers, behind which the weights are seen
  const W* part = p.part_o + row * p.splits * p.e;
  for (int f = static_cast<int>(threadIdx.x); f < p.e; f += kStepThreads) {
    W y = 0;
#pragma unroll 8
    for (int i = 0; i < parts; ++i) y += weight[i] * part[int64_t{i} * p.e + f];
    p.o[row * p.e + f] = static_cast<T>(y / all);
  }
  if (threadIdx.x == 0) p.lse[row] = peak + std::log(all);
}

template <class T, int V, int L, int P, int G>
void launch(const StepAttention<T>& p, int64_t documents) {
  using W = Acc<T>;
  const int bundles = (p.group + G - 1) / G;
  const dim3 grid(static_cast<unsigned>(p.splits), static_cast<unsigned>(p.kv_heads * bundles),
                  static_cast<unsigned>(documents));
  const size_t bytes = sizeof(W) * static_cast<size_t>(G * (kStepThreads / L) * (2 + p.e));
  launch_early(attention_step_kernel<T, V, L, P, G>, grid, kStepThreads, bytes, p);
  check_launch("attention step");
  if (p.splits == 1) return;
  launch_early(merge_kernel<T>, static_cast<unsigned>(documents * p.heads), kStepThreads,
               sizeof(W) * static_cast<size_t>(p.splits), p);
  check_launch("attention step, merge");
}

template <class T, int L, int P>
void launch_grouped(const StepAttention<T>& p, int64_t documents) {
  constexpr int V = Pack<T>::kSize;
  if constexpr (sizeof(T) == 2) {
    if (p.group > 4) return launch<T, V, L, P, 8>(p, documents);
    if (p.group > 2) return launch<T, V, L, P, 4>(p, documents);
    if (p.group > 1) return launch<T, V, L, P, 2>(p, documents);
  }
  launch<T, V, L, P, 1>(p, documents);
}

template <class T>
bool in_packs(int64_t key, int64_t value) {
  return key % Pack<T>::kSize == 0 && value % Pack<T>::kSize == 0;
}
// Lanes times packs of a head.
constexpr int64_t kMostPacks = 64;
template <class T>
bool serves(int64_t key, int64_t value) {
  const int64_t widest = std::max(key, value);
  if (key <= 0 || value <= 0) return false;
  if (!in_packs<T>(key, value)) return widest <= kMostPacks;
  return widest / Pack<T>::kSize <= (sizeof(T) == 2 ? 32 : kMostPacks);
}

template <class T>
void attend(const StepAttention<T>& p, int64_t documents) {
  constexpr int V = Pack<T>::kSize;
  if (!in_packs<T>(p.d, p.e)) return launch<T, 1, 32, 2, 1>(p, documents);
  const int packs = std::max(p.d, p.e) / V;
  if (packs <= 8) return launch_grouped<T, 8, 1>(p, documents);
  if (packs <= 16) return launch_grouped<T, 16, 1>(p, documents);
  if (packs <= 32) return launch_grouped<T, 32, 1>(p, documents);
  if constexpr (sizeof(T) > 2) launch_grouped<T, 32, 2>(p, documents);
}

}  // namespace

bool attention_step_serves(Dtype dtype, int64_t key, int64_t value) {
  return with_float(dtype, [&]<class T>() { return serves<T>(key, value); });
}

void attention_step(const Tensor& o, const Tensor& lse, const StepTokens& t, const Tensor& caches,
                    int64_t rows, const AttentionOptions& options) {
  const int64_t m = t.q.dim(0), heads = t.q.dim(1), kv_heads = t.k.dim(1), e = t.v.dim(2);
  const int64_t splits = most_blocks(options.window > 0 ? std::min(rows, options.window) : rows);
  const Tensor part_o = empty({m, heads, splits, e}, lse.dtype(), Device::cuda),
               part_lse = empty({m, heads, splits}, lse.dtype(), Device::cuda);
  with_float(o.dtype(), [&]<class T>() {
    using W = Acc<T>;
    attend<T>({data<const T>(t.q), data<const T>(t.k), data<const T>(t.v), data<const int32_t>(t.position),
               data<const int32_t>(t.document), reinterpret_cast<void* const*>(data<int32_t>(caches)),
               data<T>(o), data<W>(lse), data<W>(part_o), data<W>(part_lse), static_cast<int>(heads),
               static_cast<int>(kv_heads), static_cast<int>(heads / kv_heads), static_cast<int>(t.q.dim(2)),
               static_cast<int>(e), static_cast<int>(splits), options.window, options.alibi,
               static_cast<W>(options.scale)},
              m);
  });
}

}  // namespace weft::cuda
