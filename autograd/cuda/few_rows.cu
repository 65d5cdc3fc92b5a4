#include "autograd/cuda/few_rows.h"

#include <cooperative_groups.h>

#include <algorithm>

#include "autograd/cuda/ahead.cuh"
#include "autograd/cuda/early.cuh"
#include "autograd/cuda/few_rows.cuh"
#include "autograd/cuda/step_run.h"

namespace weft::cuda {
namespace {

constexpr int kStages = 4;     // windows of b that a warp has under way, less one
constexpr int kBlocks = 2;     // of a multiprocessor
constexpr int kMostParts = 8;  // that k is cut into: blocks of a cluster
constexpr int kUnitsOfCluster = 4;
constexpr size_t kRingBytes = size_t{kStages} * 4 * kFewThreads * 16;
constexpr size_t kPartialBytes = sizeof(float) * kUnitsOfCluster * kFewRowsMost * kUnit;

// Rows: of a; k in packs. A part of k, a block of a cluster, has `windows` windows. norm: of so many in a
// row.
template <class To>
struct Product {
  To* c;
  const bf16 *a, *b, *residual;
  const float* gain;
  int rows, packs, parts, windows, norm;
  int64_t n, units, c_pitch, a_pitch, b_pitch, residual_pitch;
  float alpha, beta, eps;
};

// A block, or a cluster of blocks that share out k, makes every so many-th unit: 16 columns of c, or with
// gates 8 of them from 8 gates and 8 more; rows of b are what the tiles have 16 of. The warps share out k
// too, window by window, and are summed in order, so that an element of c has the same bits whatever `rows`
// is. kTiles: of 8 rows of a. A warp's part of a stays in registers, normed there, while b comes by through
// the ring of each thread. It starts early (replay.h): b are weights, which no recording writes.
template <class To, int kTiles, bool kNorm, bool kGated>
__global__ void __launch_bounds__(kFewThreads, 2) few_rows_kernel(const __grid_constant__ Product<To> p) {
  extern __shared__ __align__(16) unsigned char shared[];
  constexpr int kSums = kFewWarps * kTiles * 8 * (kUnit + 1), kGains = kNorm ? kMostWindows * kWindow * 8 : 0;
  __shared__ __align__(16) float room[kSums > kGains ? kSums : kGains];
  auto& sums = *reinterpret_cast<float(*)[kFewWarps][kTiles * 8][kUnit + 1]>(room);
  float* gain = room;                                            // until the norm is done
  uint4* ring = reinterpret_cast<uint4*>(shared) + threadIdx.x;  // (stages, 4, threads)
  const int warp = static_cast<int>(threadIdx.x / kWarp), lane = static_cast<int>(threadIdx.x % kWarp),
            group = lane / 4;
  const int part = static_cast<int>(blockIdx.x) % p.parts, stride = static_cast<int>(gridDim.x) / p.parts,
            first_unit = static_cast<int>(blockIdx.x) / p.parts,
            steps = (p.windows + kFewWarps - 1) / kFewWarps;
  // This lane's first pack of the warp's i-th window, or none.
  const auto pack_of = [&](int i) {
    const int window = i * kFewWarps + warp;
    return window < p.windows ? (part * p.windows + window) * kWindow + lane % 4 : p.packs;
  };
  int ahead_unit = first_unit, ahead_step = 0;
  const auto fetch = [&](int stage) {
    if (ahead_unit < p.units) {
      const int64_t half = p.n / 2;
      const int64_t low = kGated ? min(int64_t{ahead_unit} * 8 + group, half - 1)
                                 : min(int64_t{ahead_unit} * kUnit + group, p.n - 1);
      const int64_t high = kGated ? half + low : min(int64_t{ahead_unit} * kUnit + 8 + group, p.n - 1);
      const int pack = pack_of(ahead_step);
      const auto *from_low = reinterpret_cast<const uint4*>(p.b + low * p.b_pitch),
                 *from_high = reinterpret_cast<const uint4*>(p.b + high * p.b_pitch);
      uint4* to = ring + stage * 4 * kFewThreads;
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int i = pack + 4 * u;
        const bool inside = i < p.packs;
        ahead_copy(to + 2 * u * kFewThreads, from_low + (inside ? i : 0), inside);
        ahead_copy(to + (2 * u + 1) * kFewThreads, from_high + (inside ? i : 0), inside);
      }
      if (++ahead_step == steps) ahead_step = 0, ahead_unit += stride;
    }
    ahead_commit();
  };
  if constexpr (kNorm) {
    if (p.gain != nullptr)
      for (int i = static_cast<int>(threadIdx.x); i < p.norm / 4; i += kFewThreads)
        ahead_copy(gain + 4 * i, p.gain + 4 * i, true);
    ahead_commit();
  }
  for (int stage = 0; stage + 1 < kStages; ++stage) fetch(stage);
  wait_for_earlier();
  uint4 x[kHeld][2][kTiles];
  const auto load = [&](int tile, int pack) {
    const int row = tile * 8 + group;
    return row < p.rows && pack < p.packs ? reinterpret_cast<const uint4*>(p.a + row * p.a_pitch)[pack]
                                          : uint4{};
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
#pragma unroll
    for (int u = 0; u < 2; ++u)
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) x[i][u][tile] = load(tile, pack_of(i) + 4 * u);
  if constexpr (kNorm) {
    __shared__ float squares[kMostWindows * kTiles * 8];
    norm_held(x, squares, p.gain == nullptr ? nullptr : gain, p.windows, p.packs, p.norm, p.eps, [] {
      ahead_wait<kStages - 1>();  // the gain
      __syncthreads();
    });
  }
  // What becomes of a unit whose sums are total(row, column).
  const auto finish = [&](int64_t unit, auto total) {
    constexpr int kOut = kGated ? kUnit / 2 : kUnit;
    const int64_t columns = kGated ? p.n / 2 : p.n;
    for (int i = static_cast<int>(threadIdx.x); i < p.rows * kOut; i += kFewThreads) {
      const int row = i / kOut, at = i % kOut;
      const int64_t column = unit * kOut + at;
      if (column >= columns) continue;
      float y = p.alpha * total(row, at);
      if constexpr (kGated) y = gated(y, total(row, at + 8));
      if (p.residual != nullptr)
        y = rounded(y) + static_cast<float>(p.residual[row * p.residual_pitch + column]);
      To& target = p.c[row * p.c_pitch + column];
      if (p.beta != 0) y += p.beta * static_cast<float>(target);
      target = static_cast<To>(y);
    }
  };
  const auto of_warps = [&](int row, int at) {
    float total = 0;
#pragma unroll
    for (int i = 0; i < kFewWarps; ++i) total += sums[i][row][at];
    return total;
  };
  auto* partial =
      reinterpret_cast<float*>(shared + kRingBytes);  // (units, rows, columns), of a cluster's part
  int stage = 0;
  for (int64_t unit = first_unit; unit < p.units; unit += stride) {
    float c[2][kTiles][4] = {};
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (i == steps) break;
      ahead_wait<kStages - 2>();
      uint4 b[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) b[j] = ring[(stage * 4 + j) * kFewThreads];
      fetch(stage == 0 ? kStages - 1 : stage - 1);
      stage = stage + 1 == kStages ? 0 : stage + 1;
      multiply_window(c, b, x[i]);
    }
    store_sums<kUnit + 1>(&sums[warp][0][0], c);
    __syncthreads();
    if (p.parts == 1)
      finish(unit, of_warps);
    else
      for (int i = static_cast<int>(threadIdx.x); i < p.rows * kUnit; i += kFewThreads)
        partial[(unit - first_unit) / stride * kFewRowsMost * kUnit + i] = of_warps(i / kUnit, i % kUnit);
    __syncthreads();
  }
#if __CUDA_ARCH__ >= 900
  if (p.parts == 1) return;
  // The parts of the cluster are summed in order; each does so for its share of the units.
  const auto cluster = cooperative_groups::this_cluster();
  cluster.sync();
  for (int i = part; first_unit + int64_t{i} * stride < p.units; i += p.parts)
    finish(first_unit + int64_t{i} * stride, [&](int row, int at) {
      float total = 0;
      for (int q = 0; q < p.parts; ++q)
        total +=
            cluster.map_shared_rank(partial, static_cast<unsigned>(q))[(i * kFewRowsMost + row) * kUnit + at];
      return total;
    });
  cluster.sync();  // no block ends while another reads what it has
#endif
}

bool has_clusters() {
  static const bool has = of_device(cudaDevAttrComputeCapabilityMajor) >= 9;
  return has;
}

// How a product is shared out; of its own sizes alone, so that rows keep their bits.
struct Cut {
  int parts, windows, blocks;
};
Cut cut_of(int64_t packs, int64_t units) {
  static const int multiprocessors = of_device(cudaDevAttrMultiProcessorCount);
  const int windows = static_cast<int>((packs + kWindow - 1) / kWindow);
  int parts = 1;
  while (parts * kMostWindows < windows) parts *= 2;
  if (parts == 1) return {1, windows, static_cast<int>(std::min<int64_t>(units, kBlocks * multiprocessors))};
  const int64_t at_once = multiprocessors / parts,
                each = std::clamp<int64_t>((units + at_once - 1) / at_once, 1, kUnitsOfCluster);
  return {parts, (windows + parts - 1) / parts, parts * static_cast<int>((units + each - 1) / each)};
}

template <class To, int kTiles, bool kNorm, bool kGated>
void launch(const Product<To>& p, const Cut& cut) {
  constexpr auto kernel = few_rows_kernel<To, kTiles, kNorm, kGated>;
  static const bool fits = [] {
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100));
    return fits_shared<kernel>(kRingBytes + kPartialBytes);
  }();
  CHECK(fits, "few rows: a block's shared memory is too small");
  cudaLaunchAttribute of_cluster;
  of_cluster.id = cudaLaunchAttributeClusterDimension;
  of_cluster.val.clusterDim = {static_cast<unsigned>(cut.parts), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(cut.blocks);
  config.blockDim = kFewThreads;
  config.dynamicSmemBytes = kRingBytes + (cut.parts > 1 ? kPartialBytes : 0);
  config.stream = stream();
  config.attrs = &of_cluster;
  config.numAttrs = cut.parts > 1 ? 1 : 0;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, p));
  // What the recording itself makes may be under way.
  if (!is_recorded(p.b) && !is_recorded(p.gain)) starts_early();
}

template <class To>
void multiply(const Product<To>& p, const Cut& cut, bool norm, bool gated) {
  const auto with_tiles = [&]<int kTiles>() {
    if (norm)
      gated ? launch<To, kTiles, true, true>(p, cut) : launch<To, kTiles, true, false>(p, cut);
    else
      gated ? launch<To, kTiles, false, true>(p, cut) : launch<To, kTiles, false, false>(p, cut);
  };
  p.rows > 8 ? with_tiles.template operator()<2>() : with_tiles.template operator()<1>();
}

bool in_packs(const Tensor& x) {
  return x.dtype() == Dtype::bf16 && x.rank() == 2 && x.dim(1) % Pack<bf16>::kSize == 0 && aligned(x.raw()) &&
         (x.dim(0) == 1 || x.pitch() % Pack<bf16>::kSize == 0);
}

}  // namespace

bool few_rows_serves(const Tensor& a, const Tensor& b, const Around& around) {
  const int64_t of_block = int64_t{kMostWindows} * kWindow * Pack<bf16>::kSize;
  return in_packs(a) && in_packs(b) && a.dim(0) > 0 && a.dim(0) <= kFewRowsMost && a.dim(1) > 0 &&
         a.dim(1) <= of_block * (has_clusters() && !around.norm ? kMostParts : 1) &&
         (around.norm_size == 0 || around.norm_size % (kWindow * Pack<bf16>::kSize) == 0) &&
         (!around.gain.defined() || (around.gain.dtype() == Dtype::f32 && aligned(around.gain.raw())));
}

void few_rows(const Tensor& c, const Tensor& a, const Tensor& b, double alpha, double beta,
              const Around& around) {
  const int64_t packs = a.dim(1) / Pack<bf16>::kSize, n = b.dim(0),
                to_unit = around.swiglu ? kUnit / 2 : kUnit, units = (c.dim(1) + to_unit - 1) / to_unit;
  const Cut cut = cut_of(packs, units);
  const int norm = static_cast<int>(around.norm_size > 0 ? around.norm_size : a.dim(1)),
            rows = static_cast<int>(a.dim(0));
  const int64_t residual_pitch = around.residual.defined() ? around.residual.pitch() : 0;
  const auto run = [&]<class To>() {
    const Product<To> p{.c = data<To>(c),
                        .a = data<const bf16>(a),
                        .b = data<const bf16>(b),
                        .residual = data<const bf16>(around.residual),
                        .gain = data<const float>(around.gain),
                        .rows = rows,
                        .packs = static_cast<int>(packs),
                        .parts = cut.parts,
                        .windows = cut.windows,
                        .norm = norm,
                        .n = n,
                        .units = units,
                        .c_pitch = c.pitch(),
                        .a_pitch = a.pitch(),
                        .b_pitch = b.pitch(),
                        .residual_pitch = residual_pitch,
                        .alpha = static_cast<float>(alpha),
                        .beta = static_cast<float>(beta),
                        .eps = static_cast<float>(around.eps)};
    const auto alone = [=, normed = around.norm, swiglu = around.swiglu] {
      multiply<To>(p, cut, normed, swiglu);
    };
    constexpr bool kNarrow = std::is_same_v<To, bf16>;
    bf16* narrow = nullptr;
    float* wide = nullptr;
    if constexpr (kNarrow)
      narrow = p.c;
    else
      wide = p.c;
    if (alpha == 1 && beta == 0 &&
        joins_run({.c = narrow,
                   .wide = wide,
                   .a = p.a,
                   .b = p.b,
                   .residual = p.residual,
                   .gain = p.gain,
                   .n = n,
                   .c_pitch = p.c_pitch,
                   .a_pitch = p.a_pitch,
                   .b_pitch = p.b_pitch,
                   .residual_pitch = residual_pitch,
                   .rows = rows,
                   .packs = p.packs,
                   .parts = cut.parts,
                   .windows = cut.windows,
                   .units = static_cast<int>(units),
                   .norm = around.norm ? norm : 0,
                   .gated = around.swiglu,
                   .eps = p.eps},
                  alone))
      return;
    alone();
  };
  c.dtype() == Dtype::bf16 ? run.template operator()<bf16>() : run.template operator()<float>();
}

}  // namespace weft::cuda
