#pragma once
// What the phases of a run (step_run.h) share on the GPU: a block's ring of shared memory, which warps
// of its own, the loaders, fill with what all phases read of memory in their order, and the barriers of warps
// and of the grid.

#include <cooperative_groups.h>

#include "autograd/cuda/ahead.cuh"
#include "autograd/cuda/bulk.cuh"
#include "autograd/cuda/few_rows.cuh"
#include "autograd/cuda/step_run.h"

namespace weft::cuda {

constexpr int kRunThreads = kFewThreads;  // that compute; the loaders stand beside them
constexpr int kSlots = 10;
constexpr int kRowPitch = kFewWarps * kWindow * 16 + 64;  // 16 rows of b, eight windows each, on all banks
constexpr int kSlotBytes = kUnit * kRowPitch;
constexpr int kSums = kFewWarps * 8 * (kUnit + 1);  // floats: of all warps, of a tile of a unit's part
constexpr int kTileSums = 8;                        // of which there is room for so many
constexpr int kHeldParts = 2;                       // of k, that a block of a pair has
constexpr int kMet = 2;  // units whose sums a block gets from the other one of its pair, in a phase
constexpr int kTeams = 2, kTeamThreads = kRunThreads / kTeams;  // attention: each has its own keys

struct RunShared {
  unsigned char ring[kSlots][kSlotBytes];
  alignas(16) float room[kTileSums * kSums];  // sums; the gain before them
  float met[kMet][kHeldParts][kFewRowsMost * kUnit];
  float squares[kMostWindows * kFewRowsMost];
  float cosine[kPhaseDocuments][kPhaseHead / 2], sine[kPhaseDocuments][kPhaseHead / 2];
  alignas(
      16) float fresh[3 * kPhaseHead];  // q, k and v of a new token: of a team as bf16, or q, k and decays
  int first_item[kPhaseDocuments + 1];  // of attention: parts of documents' heads, one after another
  int position[kPhaseDocuments], keys_of_part[kPhaseDocuments];
  BulkBarrier full[kSlots], empty[kSlots], met_full[kMet];
  int last[kTeams];
};

// So many bytes more, before this phase of the barrier ends.
__device__ inline void bulk_expect(BulkBarrier& barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)),
               "r"(bytes)
               : "memory");
}
// Not before this thread's copies by ahead_copy are done.
__device__ inline void bulk_expect_ahead(BulkBarrier& barrier) {
  asm volatile("cp.async.mbarrier.arrive.shared::cta.b64 [%0];" ::"r"(shared_address(&barrier)) : "memory");
}
// To the same place in another block of the cluster, where `barrier` counts the four bytes.
__device__ inline void bulk_send(float* to, float value, BulkBarrier& barrier, uint32_t rank) {
  asm volatile(
      "{.reg .b32 there, counted;\n"
      "mapa.shared::cluster.u32 there, %0, %3;\n"
      "mapa.shared::cluster.u32 counted, %2, %3;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [there], %1, [counted];}" ::"r"(
          shared_address(to)),
      "r"(__float_as_uint(value)), "r"(shared_address(&barrier)), "r"(rank)
      : "memory");
}
// BulkBarrier::wait for what another block of the cluster has sent.
__device__ inline void bulk_wait_of_cluster(BulkBarrier& barrier, uint32_t phase) {
  asm volatile(
      "{.reg .pred done;\n"
      "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;}" ::"r"(shared_address(&barrier)),
      "r"(phase)
      : "memory");
}

// Where a warp is in the ring.
struct RingAt {
  int slot = 0;
  int phase = 0;
  __device__ void next() {
    if (++slot == kSlots) slot = 0, phase ^= 1;
  }
};

constexpr int kLoaders = 4;  // warps that fill the ring, side by side

// Where a loader is: no more than `most` slots are on their way at once. With more of them memory is no
// faster, and whatever else asks it, of the phase under way, waits behind them.
constexpr int kSlotsUnderWay = 3;
struct LoaderAt : RingAt {
  RingAt arriving;
  int under_way = 0, most = kSlotsUnderWay;
};

// A loader: waits until the slot is free, says how much its bulk copies will bring; then every lane copies
// its share.
__device__ inline void begin_slot(RunShared& s, LoaderAt& at, uint32_t bytes) {
  for (; at.under_way >= at.most; --at.under_way, at.arriving.next())
    s.full[at.arriving.slot].wait(at.arriving.phase);
  ++at.under_way;
  s.empty[at.slot].wait(at.phase ^ 1);
  if (bytes > 0 && threadIdx.x % kWarp == 0) bulk_expect(s.full[at.slot], bytes);
  __syncwarp();
}
// All that this warp copies is on its way.
__device__ inline void end_slot(RunShared& s, LoaderAt& at) {
  __syncwarp();
  if (threadIdx.x % kWarp == 0) s.full[at.slot].arrive();
  at.next();
}
// A warp that computes: what it needs of the slot is in its registers.
__device__ inline void free_slot(RunShared& s, const RingAt& at) {
  __syncwarp();
  if (threadIdx.x % kWarp == 0) s.empty[at.slot].arrive();
}

// All threads that compute.
__device__ inline void run_meets() { asm volatile("bar.sync 1, %0;" ::"n"(kRunThreads) : "memory"); }
__device__ inline void team_meets(int team) {
  if (team == 0)
    asm volatile("bar.sync 2, %0;" ::"n"(kTeamThreads) : "memory");
  else
    asm volatile("bar.sync 3, %0;" ::"n"(kTeamThreads) : "memory");
}

// What other blocks have written, from the second cache.
__device__ inline uint32_t seen_bits(const bf16* x) {
  return __ldcg(reinterpret_cast<const unsigned short*>(x));
}
__device__ inline float seen(const bf16* x) { return __uint_as_float(seen_bits(x) << 16); }

}  // namespace weft::cuda
