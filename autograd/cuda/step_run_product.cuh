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
  for (int first = share.first; first < p.units; first += p.at_once * share.stride)
    for (int j = 0; j < share.parts; ++j)
      for (int k = 0; k < p.at_once; ++k) {
        const int unit = first + k * share.stride;
        if (unit >= p.units) break;
        const int64_t row = p.gated
                                ? min(int64_t{unit} * kRows + lane % kRows, last) + (loader > 0 ? p.n / 2 : 0)
                                : min(int64_t{unit} * kUnit + in_unit, last);
        const bf16* from = p.b + row * p.b_pitch + share.first_pack(p, j) * 8;
        for (int step = 0; step < share.steps; ++step) {
          const int windows = max(0, min(kFewWarps, share.windows(p, j) - step * kFewWarps));
          const auto bytes = static_cast<uint32_t>(windows * kWindow * 16);
          begin_slot(s, at, copies ? kRows * bytes : 0);
          if (copies && lane < kRows && bytes > 0)
            s.full[at.slot].load(s.ring[at.slot] + in_unit * kRowPitch, from + step * kFewWarps * kWindow * 8,
                                 static_cast<int>(bytes));
          end_slot(s, at);
        }
      }
}

// What does not depend on the phase before.
__device__ inline void prepare(const ProductPhase& p, RunShared& s) {
  if (p.norm == 0 || p.gain == nullptr || ShareOfProduct(p).first >= p.units) return;
  for (int i = static_cast<int>(threadIdx.x); i < p.norm / 4; i += kRunThreads)
    ahead_copy(s.room + 4 * i, p.gain + 4 * i, true);
  ahead_commit();
}

// Whether norm_row() takes the phase's norm: of one row, or of heads whose windows a warp's lanes have.
__device__ inline bool norms_row(const ProductPhase& p) {
  const int alike = p.norm / (kWindow * 8);
  return p.norm > 0 && p.rows == 1 && p.packs <= kRunThreads &&
         (p.norm == p.packs * 8 || alike == 1 || alike == 2 || alike == 4);
}
// norm_held of one row, to the bit, by a thread for each pack, where it takes four lanes of a warp for eight
// packs each. x: what a warp holds of the row, normed.
__device__ inline void norm_row(const ProductPhase& p, RunShared& s, uint4 (&x)[kHeld][2][1]) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / static_cast<int>(kWarp),
            lane = thread % static_cast<int>(kWarp), norm = p.norm;
  const bool whole = norm == p.packs * 8, sent = p.sent.from, gains = p.gain != nullptr;
  const auto* from = reinterpret_cast<const uint4*>(p.a + (sent ? s.half : 0)) + thread;
  const float per_element = 1.0f / static_cast<float>(norm), eps = p.eps;
  uint4 own{};
  if (thread < p.packs)
    for (Patience patience; largest(own = look(from)) == kNotSent && sent;) patience.look_again();
  __syncwarp();
  float squares = sum_of_squares(own);
  squares += __shfl_xor_sync(~0u, squares, 4);
  if (whole && lane % 8 < 4) s.squares[thread / 8 * 4 + lane % 4] = squares;  // (windows, 4)
  ahead_wait<0>();                                                            // the gain
  run_meets();
  if (whole) {  // of the windows that one warp holds by turns, warp lane / 4
    const float* of_lane = s.squares + lane;
    squares = of_lane[0];
    squares += of_lane[32] + of_lane[64] + of_lane[96];
  }
  squares += __shfl_xor_sync(~0u, squares, 1);
  squares += __shfl_xor_sync(~0u, squares, 2);
  const int count = whole ? kFewWarps : norm / (kWindow * 8), stride = whole ? 4 : 8,
            first = whole ? 0 : lane & ~(8 * count - 1);
  float sum = 0;
#pragma unroll 1
  for (int j = 0; j < count; ++j) sum += __shfl_sync(~0u, squares, first + stride * j);
  float4 gain[2] = {{1, 1, 1, 1}, {1, 1, 1, 1}};
  if (gains) {
    const auto* of_pack =
        reinterpret_cast<const float4*>(s.room) + 2 * (whole ? thread : thread % (norm / 8));
    gain[0] = of_pack[0], gain[1] = of_pack[1];
  }
  s.row[thread] = normed(own, rsqrtf(sum * per_element + eps), gain);
  run_meets();
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
#pragma unroll
    for (int u = 0; u < 2; ++u)
      x[i][u][0] = lane < 4 ? s.row[(i * kFewWarps + warp) * kWindow + lane + 4 * u] : uint4{};
}

// met: of s.met_full, which phase comes next; a bit each. Written to be short: what a phase runs once has to
// be fetched first, which takes longer than running it.
template <int kTiles, class Ahead>
__device__ void compute(const ProductPhase& p, RunShared& s, RingAt& at, uint32_t& met, const Ahead& ahead) {
  constexpr int kRows = kTiles * 8;
  const ShareOfProduct share(p);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / static_cast<int>(kWarp),
            lane = thread % static_cast<int>(kWarp), group = lane / 4, units = p.units, at_once = p.at_once;
  if (share.first >= units) return ahead();
  // All of x that a block needs, where registers hold it, else a part after the other.
  constexpr int kHeldX = kTiles == 1 ? kHeldParts : 1;
  uint4 x[kHeldX][kHeld][2][kTiles];
  // From `part` on. A block has few rows' worth of looks; of many rows it looks at one word of each unit
  // first, since all of them at once would take the second cache's time from the weights.
  const auto load_x = [&](int part) {
    const bool sent = p.sent.from;
    const int64_t pitch = p.a_pitch;
    int windows[kHeldX];  // from the warp's first one on
    const bf16* from[kHeldX];
#pragma unroll
    for (int j = 0; j < kHeldX; ++j) {
      windows[j] = part + j < share.parts ? share.windows(p, part + j) - warp : 0;
      from[j] = p.a + (sent ? s.half : 0) + (share.first_pack(p, part + j) + warp * kWindow) * 8;
    }
    if (kTiles > 1 && sent) {
      const int window = lane / 8 * kFewWarps;
      const bf16* const word =
          from[0] + (lane % 2 == 0 ? 0 : p.rows - 1) * pitch + window * kWindow * 8 + lane / 2 % 4 * kUnit;
      if (window < windows[0])
        for (Patience patience; look(word_of(word)) == kNotSent;) patience.look_again();
      __syncwarp();
    }
    Patience patience;
    uint32_t most;
    do {
      most = 0;
#pragma unroll
      for (int j = 0; j < kHeldX; ++j)
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const int row = tile * 8 + group, own = row < p.rows ? windows[j] : 0;
          const auto* of_row = reinterpret_cast<const uint4*>(from[j] + row * pitch) + lane % 4;
#pragma unroll
          for (int i = 0; i < kHeld; ++i)
#pragma unroll
            for (int u = 0; u < 2; ++u)
              x[j][i][u][tile] =
                  i * kFewWarps < own ? look(of_row + i * kFewWarps * kWindow + 4 * u) : uint4{};
        }
#pragma unroll
      for (int j = 0; j < kHeldX; ++j)
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
          for (int i = 0; i < kHeld; ++i)
#pragma unroll
            for (int u = 0; u < 2; ++u) most = max(most, largest(x[j][i][u][tile]));
      patience.look_again();
    } while (sent && most == kNotSent);
    __syncwarp();
  };
  // Units whose sums have room at once are summed over warps together, by kOfUnit threads each, in pairs of
  // columns.
  constexpr int kUnitSums = kTiles * kSums, kOfUnit = kRunThreads * kTiles / kTileSums,
                kRounds = kRows * kUnit / 2 / kOfUnit;
  const bool gates = p.gated, paired = p.parts > 1;
  const int shift = gates ? 3 : 4, elements = p.rows << shift,
            columns = static_cast<int>(gates ? p.n / 2 : p.n), own_unit = thread / kOfUnit,
            first_element = thread % kOfUnit * 2, rank = static_cast<int>(blockIdx.x % 2);
  uint32_t met_here = 0;
#pragma unroll 1
  for (int unit = share.first, item = 0; unit < units; unit += at_once * share.stride, item += at_once) {
    const int to_finish = unit + own_unit * share.stride;
    const bool any = own_unit < at_once && to_finish < units,
               finishes = any && (!paired || (item + own_unit) % 2 == rank);
    const auto row_of = [&](int e) { return e >> shift; };
    const auto column_of = [&](int e) { return (to_finish << shift) + (e & ((1 << shift) - 1)); };
    const auto residual_of = [&](int e) {
      return p.residual + (p.sent.residual ? s.half : 0) + row_of(e) * p.residual_pitch + column_of(e);
    };
    uint32_t residual[kRounds];  // the words that hold it, of which nothing is asked before they are needed
    const bool adds = p.residual != nullptr;
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int e = first_element + 2 * i * kOfUnit;
      residual[i] = 0;
      if (finishes && adds && e < elements && column_of(e) < columns)
        residual[i] = look(reinterpret_cast<const uint32_t*>(residual_of(e)));
    }
#pragma unroll 1
    for (int j = 0; j < share.parts; ++j) {
      if (item + j == 0 || (kHeldX == 1 && share.parts > 1)) {
        ahead();
        bool done = false;
        if constexpr (kTiles == 1) {
          done = norms_row(p);
          if (done) norm_row(p, s, x[0]);
        }
        if (!done) load_x(j);
        if (!done && p.norm > 0)
          norm_held(x[0], s.squares, p.gain == nullptr ? nullptr : s.room, p.windows, p.packs, p.norm, p.eps,
                    [] {
                      ahead_wait<0>();  // the gain
                      run_meets();
                    });
      }
      const int windows = share.windows(p, j) - warp;
      float* to = s.room + warp * kRows * kRowSums + j * kUnitSums;
#pragma unroll 1
      for (int k = 0; k < at_once && unit + k * share.stride < units; ++k, to += share.parts * kUnitSums) {
        if (paired && (item + k) % 2 == rank) met_here |= 1u << (item + k) / 2;
        float c[2][kTiles][4] = {};
        uint4 b[2][4];  // windows, one ahead
        const auto load = [&](uint4(&into)[4]) {
          const unsigned char* from =
              s.ring[at.slot] + group * kRowPitch + warp * kWindow * 16 + lane % 4 * 16;
          s.full[at.slot].wait(at.phase);
#pragma unroll
          for (int e = 0; e < 4; ++e)
            into[e] = *reinterpret_cast<const uint4*>(from + e / 2 * 64 + e % 2 * 8 * kRowPitch);
        };
        load(b[0]);
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
          if (i == share.steps) break;
          const RingAt now = at;
          at.next();
          if (i + 1 < kHeld && i + 1 < share.steps) load(b[(i + 1) % 2]);
          if (i * kFewWarps < windows) multiply_window(c, b[i % 2], x[0][i]);
          free_slot(s, now);
        }
        store_sums<kRowSums>(to, c);
      }
      if constexpr (kHeldX > 1)
        if (share.parts > 1)  // the other one's turn, and next time again
#pragma unroll
          for (int i = 0; i < kHeld; ++i)
#pragma unroll
            for (int u = 0; u < 2; ++u)
#pragma unroll
              for (int tile = 0; tile < kTiles; ++tile) {
                const uint4 other = x[1][i][u][tile];
                x[1][i][u][tile] = x[0][i][u][tile];
                x[0][i][u][tile] = other;
              }
    }
    run_meets();
    if (any) {
      bf16* const to_others = p.sent.to == nullptr ? nullptr : p.sent.to + s.half;
      bf16* const c = p.c;
      float* const wide = p.wide;
      const int64_t c_pitch = p.c_pitch, residual_pitch = p.residual_pitch;
      const bool residual_sent = p.sent.residual;
      const bf16* const residual_from = p.residual + (residual_sent ? s.half : 0);
      const int met_at = (item + own_unit) / 2,
                second = share.parts > 1 ? kUnitSums
                         : gates         ? 8
                                         : 0;  // sums beside the first ones
      if (paired && finishes) {
        if (first_element == 0) {
          bulk_expect(s.met_full[met_at], static_cast<uint32_t>(share.parts * elements * 4));
          s.met_full[met_at].arrive();
        }
        bulk_wait_of_cluster(s.met_full[met_at], met >> met_at & 1);
      }
#pragma unroll 1
      for (int i = 0; 2 * i * kOfUnit < elements; ++i) {
        const int e = first_element + 2 * i * kOfUnit;
        if (e >= elements) break;
        const float* const from =
            s.room + own_unit * share.parts * kUnitSums + row_of(e) * kRowSums + (e & ((1 << shift) - 1));
        const auto sum_of = [&](const float* x) {
          float2 sum = {0, 0};
#pragma unroll
          for (int w = 0; w < kFewWarps; ++w) {
            const float2 of_warp = *reinterpret_cast<const float2*>(x + w * kRows * kRowSums);
            sum.x += of_warp.x, sum.y += of_warp.y;
          }
          return sum;
        };
        float2 own[2] = {sum_of(from), {0, 0}};
        if (second > 0) own[1] = sum_of(from + second);
        if (!finishes) {
          bulk_send(&s.met[met_at][0][e], own[0], s.met_full[met_at], static_cast<uint32_t>(rank ^ 1));
          if (share.parts > 1)
            bulk_send(&s.met[met_at][1][e], own[1], s.met_full[met_at], static_cast<uint32_t>(rank ^ 1));
          continue;
        }
        float2 y = gates ? float2{gated(own[0].x, own[1].x), gated(own[0].y, own[1].y)} : own[0];
        if (paired) {  // the parts of k in their order
          float2 other[2];
#pragma unroll
          for (int j = 0; j < 2; ++j) other[j] = *reinterpret_cast<const float2*>(&s.met[met_at][j][e]);
          y = {0, 0};
          const auto add = [&](const float2& x) { y.x += x.x, y.y += x.y; };
          add(rank == 0 ? own[0] : other[0]);
          if (share.parts > 1) add(rank == 0 ? own[1] : other[1]);
          add(rank == 0 ? other[0] : own[0]);
          if (share.parts > 1) add(rank == 0 ? other[1] : own[1]);
        }
        if (column_of(e) >= columns) continue;
        if (adds) {
          const auto* const of_e =
              reinterpret_cast<const uint32_t*>(residual_from + row_of(e) * residual_pitch + column_of(e));
          uint32_t word = residual[0];
#pragma unroll
          for (int r = 1; r < kRounds; ++r)
            if (r == i) word = residual[r];
          if (residual_sent)
            for (Patience patience; word == kNotSent; patience.look_again()) word = look(of_e);
          const float2 x = floats_of(word);
          y = {rounded(y.x) + x.x, rounded(y.y) + x.y};
        }
        const int64_t to = row_of(e) * c_pitch + column_of(e);
        const uint32_t pair = pair_of(y.x, y.y);
        if (to_others != nullptr) send(reinterpret_cast<uint32_t*>(to_others + to), pair);
        if (c != nullptr) *reinterpret_cast<uint32_t*>(c + to) = pair;
        if (wide != nullptr) wide[to] = y.x, wide[to + 1] = y.y;
      }
    }
    if (unit + at_once * share.stride < units) run_meets();  // the sums have been read
  }
  met ^= met_here;
}

}  // namespace weft::cuda
