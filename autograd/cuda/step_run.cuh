#pragma once
// What the phases of a run (step_run.h) share on the GPU: a block's ring of shared memory, which warps
// of its own, the loaders, fill with what all phases read of memory in their order, the barriers of warps,
// and how blocks pass on what phases make.

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
constexpr int kRowSums = kUnit + 2;              // floats: of a row of a tile of a unit's part, in pairs
constexpr int kSums = kFewWarps * 8 * kRowSums;  // of all warps
constexpr int kTileSums = 8;                     // of which there is room for so many
constexpr int kHeldParts = 2;                    // of k, that a block of a pair has
constexpr int kMet = 2;  // units whose sums a block gets from the other one of its pair, in a phase
constexpr int kTeams = 2, kTeamThreads = kRunThreads / kTeams;  // attention: each has its own keys

constexpr int kPhaseWords = 64;  // at most

struct RunShared {
  unsigned char ring[kSlots][kSlotBytes];
  alignas(16) float room[kTileSums * kSums];  // sums; the gain before them
  alignas(16) float met[kMet][kHeldParts][kFewRowsMost * kUnit];
  float squares[kMostWindows * kFewRowsMost];
  float cosine[kPhaseDocuments][kPhaseHead / 2], sine[kPhaseDocuments][kPhaseHead / 2];
  alignas(
      16) float fresh[3 * kPhaseHead];  // q, k and v of a new token: of a team as bf16, or q, k and decays
  int first_item[kPhaseDocuments + 1];  // of attention: parts of documents' heads, one after another
  int position[kPhaseDocuments], keys_of_part[kPhaseDocuments];
  BulkBarrier full[kSlots], empty[kSlots], met_full[kMet];
  uint4 row[kRunThreads];                       // of x, normed
  alignas(16) uint32_t phases[2][kPhaseWords];  // this phase's and the next one's numbers
  int last[kTeams];
  int64_t half;  // of the exchange, that this launch uses, in elements
};

static_assert(sizeof(RunShared) <= 227 << 10);  // a block's most on Hopper

// So many bytes more, before this phase of the barrier ends.
__device__ inline void bulk_expect(BulkBarrier& barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)),
               "r"(bytes)
               : "memory");
}
// A thread arrives when its copies by ahead_copy are done.
__device__ inline void arrive_behind_copies(BulkBarrier& barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(&barrier))
               : "memory");
}
// For all of a warp.
__device__ inline void arrive_as_warp(BulkBarrier& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], 32;" ::"r"(shared_address(&barrier)) : "memory");
}
// To the same place in another block of the cluster, where `barrier` counts the eight bytes.
__device__ inline void bulk_send(float* to, float2 pair, BulkBarrier& barrier, uint32_t rank) {
  asm volatile(
      "{.reg .b32 there, counted;\n"
      "mapa.shared::cluster.u32 there, %0, %4;\n"
      "mapa.shared::cluster.u32 counted, %3, %4;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [there], {%1, %2}, "
      "[counted];}" ::"r"(shared_address(to)),
      "r"(__float_as_uint(pair.x)), "r"(__float_as_uint(pair.y)), "r"(shared_address(&barrier)), "r"(rank)
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
// All that this warp copies in bulk is on its way.
__device__ inline void end_slot(RunShared& s, LoaderAt& at) {
  __syncwarp();
  if (threadIdx.x % kWarp == 0) arrive_as_warp(s.full[at.slot]);
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

// A word of a kernel's arguments, by its address: by its name it would be a constant, and those come one
// after another from as far as memory where nobody has read them before.
__device__ inline uint32_t argument(const uint32_t* word) {
  uint32_t x;
  asm volatile("ld.u32 %0, [%1];" : "=r"(x) : "l"(word));
  return x;
}

// The exchange. Blocks pass on rows of bf16 by words that tell by themselves whether they have come: before a
// launch all are kNotSent, which no two numbers are that a conversion gives (its NaN is 0x7fff), each is
// written once, and who needs it looks until it is another. So nothing has to be ordered: neither fence nor
// barrier, and a reader's own loads are the first to bring what it waits for.
constexpr uint32_t kNotSent = 0xffffffffu;

__device__ inline uint32_t look(const uint32_t* from) {
  uint32_t x;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(from));
  return x;
}
__device__ inline uint4 look(const uint4* from) {
  uint4 x;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from));
  return x;
}
__device__ inline void send(uint32_t* to, uint32_t pair) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(pair) : "memory");
}
__device__ inline void send(float* to, float x) {
  const uint32_t word = __float_as_uint(x);
  send(reinterpret_cast<uint32_t*>(to), word == kNotSent ? 0x7fffffffu : word);  // another NaN
}
// The largest of all: kNotSent if one of them is.
__device__ inline uint32_t largest(const uint4& x) { return max(max(x.x, x.y), max(x.z, x.w)); }

// Who looks in vain for too long ends the program: an error, where there would be a kernel without an end. By
// a store to nowhere, since beside a trap the compiler gives up the registers that setmaxnreg adds. A minute,
// and not a number of looks: a checker of shared memory slows down those who are waited for, and no looks.
class Patience {
 public:
  __device__ void look_again() {
    if (++looks_ % kLooks != 0) return;
    uint64_t now;  // in ns
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    const auto seconds = static_cast<uint32_t>(now >> 30);
    if (looks_ == kLooks) first_ = seconds;
    if (seconds - first_ > kSeconds)
      asm volatile("st.global.u32 [%0], %1;" ::"l"(uint64_t{0}), "r"(looks_) : "memory");
  }

 private:
  static constexpr uint32_t kLooks = 4096, kSeconds = 60;
  uint32_t looks_ = 0, first_ = 0;
};

// The word that holds an element.
__device__ inline const uint32_t* word_of(const bf16* x) {
  return reinterpret_cast<const uint32_t*>(reinterpret_cast<uintptr_t>(x) & ~uintptr_t{3});
}
__device__ inline float half_of(uint32_t word, const bf16* x) {
  return __uint_as_float((reinterpret_cast<uintptr_t>(x) & 2) != 0 ? word & 0xffff0000u : word << 16);
}
// An element each, of rows that have been sent or of memory.
template <int kCount>
__device__ void see(float (&to)[kCount], const bf16* const (&from)[kCount], bool sent) {
  uint32_t words[kCount], most = 0;
  Patience patience;
  do {
    most = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) words[i] = look(word_of(from[i]));
#pragma unroll
    for (int i = 0; i < kCount; ++i) most = max(most, words[i]);
    patience.look_again();
  } while (sent && most == kNotSent);
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = half_of(words[i], from[i]);
}
// Of two neighbouring threads, each with an element of a pair: the first one sends both. By whole warps.
__device__ inline void send_pair(bf16* to, float x, bool any) {
  const float other = __shfl_xor_sync(~0u, x, 1);
  if (any && threadIdx.x % 2 == 0) send(reinterpret_cast<uint32_t*>(to), pair_of(x, other));
}

}  // namespace weft::cuda
