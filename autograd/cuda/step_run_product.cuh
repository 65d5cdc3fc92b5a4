#pragma once
// A product as a phase of a run: the arithmetic of few_rows_kernel (few_rows.cu), to the bit. What is cut
// there over a cluster of blocks is here over a pair, of which each has half of the parts of k.

#include "autograd/cuda/step_run.cuh"

namespace weft::cuda {

// The units that a block makes, and of which parts of k.
struct ShareOfProduct {
  int first, stride, part, parts, steps;
  __device__ explicit ShareOfProduct(const ProductPhase& p) {
    const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
    const bool paired = p.parts > 1;
    first = paired ? block / 2 : block;
    stride = paired ? blocks / 2 : blocks;
    parts = paired ? p.parts / 2 : 1;
    part = paired ? block % 2 * parts : 0;
    steps = (p.windows + kFewWarps - 1) / kFewWarps;
  }
  // Of the j-th of its parts.
  __device__ int windows(const ProductPhase& p, int j) const {
    return min(p.windows, p.packs / kWindow - (part + j) * p.windows);
  }
  __device__ int first_pack(const ProductPhase& p, int j) const { return (part + j) * p.windows * kWindow; }
};

// Two loaders copy eight rows each: one alone does not issue copies as fast as memory answers.
__device__ inline void produce(const ProductPhase& p, RunShared& s, LoaderAt& at, int loader) {
  constexpr int kCopiers = 2, kRows = kUnit / kCopiers;
  const ShareOfProduct share(p);
  const int lane = static_cast<int>(threadIdx.x % kWarp), in_unit = loader * kRows + lane % kRows;
  const int64_t last = (p.gated ? p.n / 2 : p.n) - 1;
  const bool copies = loader < kCopiers;
  for (int unit = share.first; unit < p.units; unit += share.stride) {
    const int64_t row = p.gated ? min(int64_t{unit} * kRows + lane % kRows, last) + (loader > 0 ? p.n / 2 : 0)
                                : min(int64_t{unit} * kUnit + in_unit, last);
    const bf16* from = p.b + row * p.b_pitch;
    for (int j = 0; j < share.parts; ++j)
      for (int step = 0; step < share.steps; ++step) {
        const int windows = max(0, min(kFewWarps, share.windows(p, j) - step * kFewWarps));
        const auto bytes = static_cast<uint32_t>(windows * kWindow * 16);
        begin_slot(s, at, copies ? kRows * bytes : 0);
        if (copies && lane < kRows && bytes > 0)
          s.full[at.slot].load(s.ring[at.slot] + in_unit * kRowPitch,
                               from + (share.first_pack(p, j) + step * kFewWarps * kWindow) * 8,
                               static_cast<int>(bytes));
        end_slot(s, at);
      }
  }
}

// What does not depend on the phase before.
__device__ inline void prepare(const ProductPhase& p, RunShared& s) {
  if (p.norm == 0 || p.gain == nullptr) return;
  for (int i = static_cast<int>(threadIdx.x); i < p.norm / 4; i += kRunThreads)
    ahead_copy(s.room + 4 * i, p.gain + 4 * i, true);
  ahead_commit();
}

// met: of s.met_full, which phase comes next; a bit each.
template <int kTiles>
__device__ void compute(const ProductPhase& p, RunShared& s, RingAt& at, uint32_t& met) {
  constexpr int kRows = kTiles * 8;
  const ShareOfProduct share(p);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / static_cast<int>(kWarp),
            lane = thread % static_cast<int>(kWarp), group = lane / 4;
  uint4 x[kHeldParts][kHeld][2][kTiles];
  const auto load_x = [&](int j, uint4(&to)[kHeld][2][kTiles]) {
    const int windows = j < share.parts ? share.windows(p, j) - warp : 0;  // from the warp's first one on
    const bf16* const from =
        p.a + (share.first_pack(p, j) + warp * kWindow + lane % 4) * 8 + group * p.a_pitch;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int own = tile * 8 + group < p.rows ? windows : 0;
      const auto* of_tile = reinterpret_cast<const uint4*>(from + tile * 8 * p.a_pitch);
#pragma unroll
      for (int i = 0; i < kHeld; ++i)
#pragma unroll
        for (int u = 0; u < 2; ++u)
          to[i][u][tile] = i * kFewWarps < own ? __ldcg(of_tile + i * kFewWarps * kWindow + 4 * u) : uint4{};
    }
  };
  load_x(0, x[0]);
  if (p.norm > 0)
    norm_held(x[0], s.squares, p.gain == nullptr ? nullptr : s.room, p.windows, p.packs, p.norm, p.eps, [] {
      ahead_wait<0>();  // the gain
      run_meets();
    });
  load_x(1, x[1]);  // not before the norm, which needs the registers and is of one part alone
  // Units whose sums have room at once are summed over warps together, by kOfUnit threads each.
  constexpr int kUnitSums = kTiles * kSums, kRow = kUnit + 1, kOfUnit = kRunThreads * kTiles / kTileSums,
                kRounds = kRows * kUnit / kOfUnit;
  const int at_once = kTileSums / kTiles / share.parts, shift = p.gated ? 3 : 4, elements = p.rows << shift,
            columns = static_cast<int>(p.gated ? p.n / 2 : p.n), own_unit = thread / kOfUnit,
            first_element = thread % kOfUnit, rank = static_cast<int>(blockIdx.x % 2);
  const bool paired = p.parts > 1;
  uint32_t met_here = 0;
  for (int unit = share.first, item = 0; unit < p.units; unit += at_once * share.stride, item += at_once) {
    const int to_finish = unit + own_unit * share.stride;
    const bool any = own_unit < at_once && to_finish < p.units,
               finishes = any && (!paired || (item + own_unit) % 2 == rank);
    const auto row_of = [&](int e) { return e >> shift; };
    const auto column_of = [&](int e) { return (to_finish << shift) + (e & ((1 << shift) - 1)); };
    uint32_t residual[kRounds];  // widened only when it is needed, or the product would wait for it
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int e = first_element + i * kOfUnit;
      residual[i] = 0;
      if (finishes && p.residual != nullptr && e < elements && column_of(e) < columns)
        residual[i] = seen_bits(p.residual + row_of(e) * p.residual_pitch + column_of(e));
    }
    float* to = s.room + warp * kRows * kRow;
    for (int k = 0; k < at_once && unit + k * share.stride < p.units; ++k) {
      if (paired && (item + k) % 2 == rank) met_here |= 1u << (item + k) / 2;
#pragma unroll
      for (int j = 0; j < kHeldParts; ++j, to += kUnitSums) {
        if (j == share.parts) break;
        const int windows = share.windows(p, j) - warp;
        float c[2][kTiles][4] = {};
        constexpr int kAhead = kTiles == 1 ? 2 : 1;  // windows in registers
        uint4 b[kAhead][4];
        const auto load = [&](uint4(&into)[4]) {
          const unsigned char* from =
              s.ring[at.slot] + group * kRowPitch + warp * kWindow * 16 + lane % 4 * 16;
          s.full[at.slot].wait(at.phase);
#pragma unroll
          for (int e = 0; e < 4; ++e)
            into[e] = *reinterpret_cast<const uint4*>(from + e / 2 * 64 + e % 2 * 8 * kRowPitch);
        };
        if (kAhead == 2) load(b[0]);
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
          if (i == share.steps) break;
          if (kAhead == 1) load(b[0]);
          const RingAt now = at;
          at.next();
          if (kAhead == 2 && i + 1 < kHeld && i + 1 < share.steps) load(b[(i + 1) % kAhead]);
          if (i * kFewWarps < windows) multiply_window(c, b[i % kAhead], x[j][i]);
          free_slot(s, now);
        }
        store_sums(to, c);
      }
    }
    run_meets();
    if (any) {
      const float* const from = s.room + own_unit * share.parts * kUnitSums;
      const auto of_warps = [&](int j, int e, int beside = 0) {
        const float* first = from + j * kUnitSums + row_of(e) * kRow + (e & ((1 << shift) - 1)) + beside;
        float total = 0;
#pragma unroll
        for (int i = 0; i < kFewWarps; ++i) total += first[i * kRows * kRow];
        return total;
      };
      const int met_at = (item + own_unit) / 2;
      if (paired && finishes) {
        if (first_element == 0) {
          bulk_expect(s.met_full[met_at], static_cast<uint32_t>(share.parts * elements * 4));
          s.met_full[met_at].arrive();
        }
        bulk_wait_of_cluster(s.met_full[met_at], met >> met_at & 1);
      }
#pragma unroll
      for (int i = 0; i < kRounds; ++i) {
        const int e = first_element + i * kOfUnit;
        if (e >= elements) break;
        if (!finishes) {
          for (int j = 0; j < share.parts; ++j)
            bulk_send(&s.met[met_at][j][e], of_warps(j, e), s.met_full[met_at],
                      static_cast<uint32_t>(rank ^ 1));
          continue;
        }
        float y = 0;
        if (!paired) {
          y = of_warps(0, e);
          if (p.gated) y = gated(y, of_warps(0, e, 8));
        } else {
          for (int half = 0; half < 2; ++half)
            for (int j = 0; j < share.parts; ++j) y += half == rank ? of_warps(j, e) : s.met[met_at][j][e];
        }
        if (column_of(e) >= columns) continue;
        if (p.residual != nullptr) y = rounded(y) + __uint_as_float(residual[i] << 16);
        p.c[row_of(e) * p.c_pitch + column_of(e)] = static_cast<bf16>(y);
      }
    }
    if (unit + at_once * share.stride < p.units) run_meets();  // the sums have been read
  }
  met ^= met_here;
}

}  // namespace weft::cuda
