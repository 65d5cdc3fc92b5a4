// A new token of each document looks at all of its past: many blocks share the keys of a head, and the last
// of them to be done merges the partial results of all in a fixed order (README, "Merging partial attention";
// Dao et al. 2023, "Flash-Decoding").

#include <algorithm>

#include "attention/steps.h"
#include "autograd/cuda/ahead.cuh"
#include "autograd/cuda/early.cuh"
#include "autograd/cuda/step_run.h"

namespace weft::cuda {
namespace {

constexpr int kStepThreads = 128, kAbreast = 4;  // keys that a group of lanes takes at once

__device__ inline float exp2_of(float x) { return exp2f(x); }
__device__ inline double exp2_of(double x) { return exp2(x); }

template <class T>
struct StepAttention {
  const T *q, *k, *v;  // (M, H, D), (M, Hkv, D), (M, Hkv, E)
  int64_t q_pitch, k_pitch, v_pitch;
  const int32_t *position, *document;
  void* const* caches;
  T* o;
  Acc<T>*lse, *part_o, *part_lse;  // parts (M, H, splits, E) and (M, H, splits)
  int heads, kv_heads, group, d, e, splits;
  int64_t window;
  bool alibi;
  double turn;  // base of the rotary positions; 0: none
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

// Blocks that are done, of the key heads of documents; 0 between kernels.
constexpr int64_t kMostArrivals = 1 << 16;
__device__ int arrivals[kMostArrivals];

// Keys and values that the threads of a block have under way: (stages, keys abreast, packs, k and v).
template <class T, int V, int P>
struct Ring {
  using Features = Few<T, V>;
  static constexpr int kOfStage = kAbreast * P * 2;
  static constexpr size_t kStageBytes = kOfStage * sizeof(Features) * kStepThreads;
  static constexpr int kStages =
      static_cast<int>(std::max<size_t>(2, std::min<size_t>(3, (64 << 10) / kStageBytes)));
  static constexpr size_t kBytes = kStages * kStageBytes;
  Features* own;
  __device__ Features& at(int stage, int a, int i, int which) const {
    return own[(((stage * kAbreast + a) * P + i) * 2 + which) * kStepThreads];
  }
  // One pack, or zeros.
  __device__ static void copy(Features& to, const T* from, bool inside) {
    if constexpr (sizeof(Features) == 16)
      ahead_copy(&to, from, inside);
    else
      to = inside ? *reinterpret_cast<const Features*>(from) : Features{};
  }
};

// The document's part of one head of the last block to be done: o and lse of all parts.
template <class T, int V>
__device__ void merge_parts(const StepAttention<T>& p, int64_t row, int parts, unsigned char* shared) {
  using W = Acc<T>;
  constexpr int U = V == 1 ? 1 : sizeof(W) == 8 ? 2 : 4;
  struct alignas(U * sizeof(W)) Wide {
    W v[U];
  };
  const int columns = p.e / U, abreast = kStepThreads / columns,
            own = static_cast<int>(threadIdx.x) / columns, column = static_cast<int>(threadIdx.x) % columns;
  W *sums = reinterpret_cast<W*>(shared), *weight = sums + kStepThreads * U;
  const W* lse = p.part_lse + row * p.splits;
  W peak = -W(INFINITY);
  for (int i = static_cast<int>(threadIdx.x); i < parts; i += kStepThreads) peak = max(peak, __ldcg(lse + i));
  peak = block_max(peak);
  W all = 0;
  for (int i = static_cast<int>(threadIdx.x); i < parts; i += kStepThreads)
    all += weight[i] = exp2_of(static_cast<W>(kLog2E) * (__ldcg(lse + i) - peak));
  all = block_sum(all);  // with its barriers, behind which the weights are seen
  Wide y = {};
  if (own < abreast) {
    const W* part = p.part_o + row * p.splits * p.e + column * U;
#pragma unroll 8
    for (int i = own; i < parts; i += abreast) {
#pragma unroll
      for (int j = 0; j < U; ++j) y.v[j] += weight[i] * __ldcg(part + int64_t{i} * p.e + j);
    }
    reinterpret_cast<Wide*>(sums)[own * columns + column] = y;
  }
  __syncthreads();
  for (int f = static_cast<int>(threadIdx.x); f < p.e; f += kStepThreads) {
    W sum = 0;
    for (int x = 0; x < abreast; ++x) sum += sums[x * p.e + f];
    p.o[row * p.e + f] = static_cast<T>(sum / all);
  }
  if (threadIdx.x == 0) p.lse[row] = peak + std::log(all);
  __syncthreads();
}

// A block: some keys of a key head of a document, and up to G of the query heads that read it. L lanes share
// a key, P packs of V features a lane. Scores are in units of log 2.
template <class T, int V, int L, int P, int G>
__global__ void __launch_bounds__(kStepThreads)
    attention_step_kernel(const __grid_constant__ StepAttention<T> p) {
  using W = Acc<T>;
  using Features = Few<T, V>;
  using OwnRing = Ring<T, V, P>;
  constexpr int kGroups = kStepThreads / L, kStages = OwnRing::kStages;
  extern __shared__ __align__(16) unsigned char shared[];
  const int64_t m = blockIdx.z, at = p.position[m], seen = p.first(at);
  const int keys = KeysOfPart()(at + 1 - seen);
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
  const OwnRing ring{reinterpret_cast<Features*>(shared) + threadIdx.x};
  const int64_t past_end = min(end, at);
  int64_t ahead = begin;
  const auto fetch = [&](int stage) {
    if (ahead < past_end) {
#pragma unroll
      for (int a = 0; a < kAbreast; ++a) {
        const int64_t row = ahead + a * kGroups + own;
#pragma unroll
        for (int i = 0; i < P; ++i) {
          const int f = (i * L + lane) * V;
          const bool k_inside = row < past_end && f < p.d, v_inside = row < past_end && f < p.e;
          OwnRing::copy(ring.at(stage, a, i, 0), k_past + (k_inside ? row * k_pitch + f : 0), k_inside);
          OwnRing::copy(ring.at(stage, a, i, 1), v_past + (v_inside ? row * v_pitch + f : 0), v_inside);
        }
      }
    }
    ahead += kGroups * kAbreast;
    ahead_commit();
  };
  for (int stage = 0; stage + 1 < kStages; ++stage) fetch(stage);  // the past was written a token ago
  // The new token's queries, key and value, turned to their position.
  const int pairs = p.turn > 0 ? p.d / 2 : 0;
  W *cosine = reinterpret_cast<W*>(shared + OwnRing::kBytes), *sine = cosine + pairs;
  T *fresh = reinterpret_cast<T*>(sine + pairs), *fresh_k = fresh + G * p.d, *fresh_v = fresh_k + p.d;
  for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kStepThreads) {
    double s, c;
    sincos(static_cast<double>(at) * pow(p.turn, -static_cast<double>(i) / static_cast<double>(pairs)), &s,
           &c);
    cosine[i] = static_cast<W>(c);
    sine[i] = static_cast<W>(s);
  }
  wait_for_earlier();
  __syncthreads();
  const T *q_new = p.q + m * p.q_pitch + int64_t{head0} * p.d,
          *k_new = p.k + m * p.k_pitch + int64_t{kv} * p.d, *v_new = p.v + m * p.v_pitch + int64_t{kv} * p.e;
  if (pairs > 0)
    for (int i = static_cast<int>(threadIdx.x); i < (count + 1) * pairs; i += kStepThreads) {
      const int x = i / pairs, j = i - x * pairs;
      const T* from = x < count ? q_new + int64_t{x} * p.d : k_new;
      T* to = x < count ? fresh + x * p.d : fresh_k;
      const W a = static_cast<W>(from[j]), b = static_cast<W>(from[j + pairs]);
      // Written out, so that whoever turns by these gets the same bits (step_run.h).
      to[j] = static_cast<T>(fma(a, cosine[j], -(b * sine[j])));
      to[j + pairs] = static_cast<T>(fma(b, cosine[j], a * sine[j]));
    }
  else
    for (int i = static_cast<int>(threadIdx.x); i < (count + 1) * p.d; i += kStepThreads)
      if (i < count * p.d)
        fresh[i] = q_new[i];
      else
        fresh_k[i - count * p.d] = k_new[i - count * p.d];
  for (int i = static_cast<int>(threadIdx.x); i < p.e; i += kStepThreads) fresh_v[i] = v_new[i];
  __syncthreads();
  if (end == at + 1 && head0 == kv * p.group) {  // the new token joins the past, for the next step to read
    for (int i = static_cast<int>(threadIdx.x); i < p.d; i += kStepThreads)
      k_past[at * k_pitch + i] = fresh_k[i];
    for (int i = static_cast<int>(threadIdx.x); i < p.e; i += kStepThreads)
      v_past[at * v_pitch + i] = fresh_v[i];
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
      if (g < count && f < p.d) x = *reinterpret_cast<const Features*>(fresh + g * p.d + f);
#pragma unroll
      for (int j = 0; j < V; ++j) q[g][i][j] = static_cast<W>(kLog2E) * p.scale * static_cast<W>(x.v[j]);
    }
  }
  int stage = 0;
  for (int64_t base = begin; base < end; base += kGroups * kAbreast) {
    ahead_wait<kStages - 2>();
    Features k[kAbreast][P] = {}, v[kAbreast][P] = {};
    if (base < past_end) {
#pragma unroll
      for (int a = 0; a < kAbreast; ++a)
#pragma unroll
        for (int i = 0; i < P; ++i) k[a][i] = ring.at(stage, a, i, 0), v[a][i] = ring.at(stage, a, i, 1);
    }
    if (end > past_end && base + kGroups * kAbreast > at) {  // the new one
#pragma unroll
      for (int a = 0; a < kAbreast; ++a)
        if (base + a * kGroups + own == at) {
#pragma unroll
          for (int i = 0; i < P; ++i) {
            const int f = (i * L + lane) * V;
            if (f < p.d) k[a][i] = *reinterpret_cast<const Features*>(fresh_k + f);
            if (f < p.e) v[a][i] = *reinterpret_cast<const Features*>(fresh_v + f);
          }
        }
    }
    fetch(stage == 0 ? kStages - 1 : stage - 1);
    stage = stage + 1 == kStages ? 0 : stage + 1;
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
  // The groups of lanes one after another, where the ring was.
  __syncthreads();
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
  const int parts = static_cast<int>((at - seen) / keys) + 1;
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
    if (parts == 1) {
      p.o[row * p.e + f] = static_cast<T>(y / all);
      if (f == 0) p.lse[row] = lse;
      continue;
    }
    p.part_o[(row * p.splits + blockIdx.x) * p.e + f] = y / all;
    if (f == 0) p.part_lse[row * p.splits + blockIdx.x] = lse;
  }
  if (parts == 1) return;
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  int& arrived = arrivals[m * gridDim.y + blockIdx.y];
  if (threadIdx.x == 0) last = atomicAdd(&arrived, 1) == parts - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int g = 0; g < count; ++g) merge_parts<T, V>(p, m * p.heads + head0 + g, parts, shared);
  if (threadIdx.x == 0) arrived = 0;
}

template <class T, int V, int L, int P, int G>
void launch(const StepAttention<T>& p, int64_t documents) {
  using W = Acc<T>;
  using OwnRing = Ring<T, V, P>;
  const int bundles = (p.group + G - 1) / G;
  const dim3 grid(static_cast<unsigned>(p.splits), static_cast<unsigned>(p.kv_heads * bundles),
                  static_cast<unsigned>(documents));
  CHECK(int64_t{grid.y} * grid.z <= kMostArrivals, "attention step: ", documents, " documents of ",
        p.kv_heads, " key heads");
  const auto fresh = static_cast<size_t>(p.d) * (sizeof(W) + (G + 1) * sizeof(T)) +
                     static_cast<size_t>(p.e) * sizeof(T),
             bytes = std::max({OwnRing::kBytes + fresh,
                               sizeof(W) * static_cast<size_t>(G * (kStepThreads / L) * (2 + p.e)),
                               sizeof(W) * static_cast<size_t>(4 * kStepThreads + p.splits)});
  const auto kernel = attention_step_kernel<T, V, L, P, G>;
  if (bytes > (40 << 10))
    CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  kernel<<<grid, kStepThreads, bytes, stream()>>>(p);
  // It reads them ahead of the wait, and what the recording itself makes may be under way.
  if (!is_recorded(p.position)) starts_early();
  check_launch("attention step");
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
                    int64_t rows, const AttentionOptions& options, double turn) {
  const int64_t m = t.q.dim(0), heads = t.q.dim(1), kv_heads = t.k.dim(1), e = t.v.dim(2);
  const int64_t splits = KeysOfPart().most_parts(options.window > 0 ? std::min(rows, options.window) : rows);
  const Tensor part_o = empty({m, heads, splits, e}, lse.dtype(), Device::cuda),
               part_lse = empty({m, heads, splits}, lse.dtype(), Device::cuda);
  with_float(o.dtype(), [&]<class T>() {
    using W = Acc<T>;
    const StepAttention<T> p{.q = data<const T>(t.q),
                             .k = data<const T>(t.k),
                             .v = data<const T>(t.v),
                             .q_pitch = t.q.pitch(),
                             .k_pitch = t.k.pitch(),
                             .v_pitch = t.v.pitch(),
                             .position = data<const int32_t>(t.position),
                             .document = data<const int32_t>(t.document),
                             .caches = reinterpret_cast<void* const*>(data<int32_t>(caches)),
                             .o = data<T>(o),
                             .lse = data<W>(lse),
                             .part_o = data<W>(part_o),
                             .part_lse = data<W>(part_lse),
                             .heads = static_cast<int>(heads),
                             .kv_heads = static_cast<int>(kv_heads),
                             .group = static_cast<int>(heads / kv_heads),
                             .d = static_cast<int>(t.q.dim(2)),
                             .e = static_cast<int>(e),
                             .splits = static_cast<int>(splits),
                             .window = options.window,
                             .alibi = options.alibi,
                             .turn = turn,
                             .scale = static_cast<W>(options.scale)};
    const auto alone = [=] { attend<T>(p, m); };
    if constexpr (std::is_same_v<T, bf16>)
      if (heads == kv_heads && e == kPhaseHead && p.d == e && !options.alibi && options.window == 0 &&
          joins_run({.q = p.q,
                     .k = p.k,
                     .v = p.v,
                     .q_pitch = p.q_pitch,
                     .k_pitch = p.k_pitch,
                     .v_pitch = p.v_pitch,
                     .position = p.position,
                     .document = p.document,
                     .caches = p.caches,
                     .o = p.o,
                     .lse = p.lse,
                     .part_o = p.part_o,
                     .part_lse = p.part_lse,
                     .documents = static_cast<int>(m),
                     .heads = p.heads,
                     .splits = p.splits,
                     .turn = turn,
                     .scale = p.scale},
                    alone))
        return;
    alone();
  });
}

}  // namespace weft::cuda
