#pragma once
// Attention of a step as a phase of a run: the arithmetic of attention_step_kernel (attention/), to the bit.
// Half of a block's threads, a team, take what is a block there: some keys of a head of a document.

#include "autograd/cuda/step_run.cuh"

namespace weft::cuda {

constexpr int kAbreastKeys = 4, kKeyLanes = kPhaseHead / 8, kKeyGroups = kTeamThreads / kKeyLanes,
              kKeysOfSlot = kAbreastKeys * kKeyGroups;
static_assert(kKeysOfSlot == static_cast<int>(kWarp) && 2 * kKeysOfSlot * kPhaseHead * 2 <= kSlotBytes);
constexpr int kMostSplits = 3072;  // whose weights have room beside the sums
constexpr int kMostPhaseHeads = 256;

// Heads of documents that are not done; 0 between phases.
static __device__ int run_arrivals[kPhaseDocuments * kMostPhaseHeads];

struct KeysOfItem {
  int document, head, part, parts, at;
  int begin, end;
};

// The items of a team: [first, last) of all parts of all heads of all documents.
struct ShareOfKeys {
  int first, last;
  __device__ ShareOfKeys(const AttentionPhase& p, const RunShared& s, int team) {
    const int all = s.first_item[p.documents], teams = static_cast<int>(gridDim.x) * kTeams,
              own = static_cast<int>(blockIdx.x) * kTeams + team, each = all / teams, more = all % teams;
    first = own * each + min(own, more);
    last = first + each + (own < more ? 1 : 0);
  }
  __device__ KeysOfItem item(const AttentionPhase& p, const RunShared& s, int round) const {
    const int i = first + round;
    KeysOfItem k{};
    if (i >= last) return k;
    while (i >= s.first_item[k.document + 1]) ++k.document;
    const int of_document = i - s.first_item[k.document];
    k.at = s.position[k.document];
    k.parts = (s.first_item[k.document + 1] - s.first_item[k.document]) / p.heads;
    k.head = of_document / k.parts;
    k.part = of_document % k.parts;
    k.begin = k.part * s.keys_of_part[k.document];
    k.end = min(k.begin + s.keys_of_part[k.document], k.at + 1);
    return k;
  }
};
__device__ inline int slots_of(const KeysOfItem& k) {
  return (k.end - k.begin + kKeysOfSlot - 1) / kKeysOfSlot;
}

// The teams of a block go through their items side by side: each takes every other slot. Rows of 256 bytes
// are too short for bulk copies: all lanes copy packs of 16 bytes.
__device__ inline void produce(const AttentionPhase& p, RunShared& s, LoaderAt& at, int loader) {
  constexpr int kRows = kKeysOfSlot / kLoaders, kAtOnce = static_cast<int>(kWarp) / kKeyLanes;
  const int lane = static_cast<int>(threadIdx.x % kWarp), pack = lane % kKeyLanes;
  const ShareOfKeys share[kTeams] = {{p, s, 0}, {p, s, 1}};
  const int64_t pitch = int64_t{p.heads} * kPhaseHead;
  const int rounds = max(share[0].last - share[0].first, share[1].last - share[1].first);
  at.most = 6;  // nobody but the keys asks much of memory
  for (int round = 0; round < rounds; ++round) {
    KeysOfItem items[kTeams];
    const bf16 *k[kTeams], *v[kTeams];
#pragma unroll
    for (int team = 0; team < kTeams; ++team) {
      items[team] = share[team].item(p, s, round);
      void* const* cache = p.caches + 4 * items[team].document;
      const int64_t from = (items[team].begin + loader * kRows + lane / kKeyLanes) * pitch +
                           items[team].head * kPhaseHead + pack * 8;
      k[team] = static_cast<const bf16*>(cache[0]) + from;
      v[team] = static_cast<const bf16*>(cache[1]) + from;
    }
    const int slots = max(slots_of(items[0]), slots_of(items[1]));
    for (int step = 0; step < slots; ++step)
#pragma unroll
      for (int team = 0; team < kTeams; ++team) {
        const int first = loader * kRows + lane / kKeyLanes,
                  rows =
                      min(items[team].end, items[team].at) - items[team].begin - step * kKeysOfSlot - first;
        begin_slot(s, at, 0);
        unsigned char* to = s.ring[at.slot] + (first * kKeyLanes + pack) * 16;
#pragma unroll
        for (int i = 0; i < kRows; i += kAtOnce)
          if (i < rows) {
            ahead_copy(to + i * kKeyLanes * 16, k[team] + i * pitch, true);
            ahead_copy(to + (i + kKeysOfSlot) * kKeyLanes * 16, v[team] + i * pitch, true);
          }
        k[team] += kKeysOfSlot * pitch;
        v[team] += kKeysOfSlot * pitch;
        arrive_behind_copies(s.full[at.slot]);
        at.next();
      }
  }
  at.most = kSlotsUnderWay;
}

// As block_sum and block_max of a block that is a team.
template <class Join>
__device__ float over_team(float* room, int team, float value, float none, Join join) {
  const int thread = static_cast<int>(threadIdx.x) % kTeamThreads, warp = thread / static_cast<int>(kWarp),
            lane = thread % static_cast<int>(kWarp);
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value = join(value, __shfl_xor_sync(~0u, value, step));
  team_meets(team);
  if (lane == 0) room[warp] = value;
  team_meets(team);
  value = lane < kTeamThreads / static_cast<int>(kWarp) ? room[lane] : none;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value = join(value, __shfl_xor_sync(~0u, value, step));
  return value;
}

// An element of o, by each thread of a team.
__device__ inline void give(const AttentionPhase& p, const RunShared& s, int64_t row, int thread, float y) {
  const int64_t to = row * kPhaseHead + thread;
  if (p.sent.to != nullptr) send_pair(p.sent.to + s.half + to, y, true);
  if (p.o != nullptr) p.o[to] = static_cast<bf16>(y);
}

// o and lse of all parts of a head.
__device__ inline void merge_parts(const AttentionPhase& p, const RunShared& s, int64_t row, int parts,
                                   int team, float* room) {
  constexpr int kWide = 4, kColumns = kPhaseHead / kWide, kAbreast = kTeamThreads / kColumns;
  const int thread = static_cast<int>(threadIdx.x) % kTeamThreads, own = thread / kColumns,
            column = thread % kColumns;
  float *sums = room, *few = sums + kTeamThreads * kWide, *weight = few + kWarp;
  const int64_t half = p.sent.parts ? s.half / 2 : 0;  // in floats
  const float* lse = p.part_lse + half + row * p.splits;
  const auto* part = reinterpret_cast<const float4*>(p.part_o + half + row * p.splits * kPhaseHead) + column;
  constexpr int kFirst = 4;  // asked for before their weights are known
  float4 first[kFirst];
  float peak = -INFINITY;
  if (p.sent.parts) {
    uint32_t most;
    Patience patience;
    do {
      most = 0;
#pragma unroll
      for (int i = 0; i < kFirst; ++i)
        if (own + i * kAbreast < parts) {
          const uint4 x = look(reinterpret_cast<const uint4*>(part + (own + i * kAbreast) * kColumns));
          most = max(most, largest(x));
          first[i] = {__uint_as_float(x.x), __uint_as_float(x.y), __uint_as_float(x.z), __uint_as_float(x.w)};
        }
#pragma unroll 1
      for (int i = thread; i < parts; i += kTeamThreads) {
        const uint32_t x = look(reinterpret_cast<const uint32_t*>(lse + i));
        most = max(most, x);
        weight[i] = __uint_as_float(x);
        peak = max(peak, weight[i]);
      }
      patience.look_again();
    } while (most == kNotSent);
    __syncwarp();
  } else {
#pragma unroll
    for (int i = 0; i < kFirst; ++i)
      if (own + i * kAbreast < parts) first[i] = __ldcg(part + (own + i * kAbreast) * kColumns);
#pragma unroll 1
    for (int i = thread; i < parts; i += kTeamThreads) peak = max(peak, weight[i] = __ldcg(lse + i));
  }
  peak = over_team(few, team, peak, -INFINITY, [](float a, float b) { return b > a ? b : a; });
  float all = 0;
#pragma unroll 1
  for (int i = thread; i < parts; i += kTeamThreads) all += weight[i] = exp2f(kLog2E * (weight[i] - peak));
  all = over_team(few, team, all, 0, [](float a, float b) { return a + b; });
  float y[kWide] = {};
  const auto add = [&](int i, const float4& x) {
    y[0] += weight[i] * x.x;
    y[1] += weight[i] * x.y;
    y[2] += weight[i] * x.z;
    y[3] += weight[i] * x.w;
  };
  const auto part_at = [&](int i) {
    const float4* from = part + int64_t{i} * kColumns;
    if (!p.sent.parts) return __ldcg(from);
    uint4 x;
    for (Patience patience; largest(x = look(reinterpret_cast<const uint4*>(from))) == kNotSent;)
      patience.look_again();
    return float4{__uint_as_float(x.x), __uint_as_float(x.y), __uint_as_float(x.z), __uint_as_float(x.w)};
  };
#pragma unroll
  for (int i = 0; i < kFirst; ++i)
    if (own + i * kAbreast < parts) add(own + i * kAbreast, first[i]);
#pragma unroll 4
  for (int i = own + kFirst * kAbreast; i < parts; i += kAbreast) add(i, part_at(i));
  reinterpret_cast<float4*>(sums)[own * kColumns + column] = {y[0], y[1], y[2], y[3]};
  team_meets(team);
  float sum = 0;
  for (int i = 0; i < kAbreast; ++i) sum += sums[i * kPhaseHead + thread];
  give(p, s, row, thread, sum / all);
  if (thread == 0 && p.lse != nullptr) p.lse[row] = peak + std::log(all);
  team_meets(team);
}

// Once for a run, by all threads that compute: the angles of the documents' new tokens.
__device__ inline void turn_angles(const AttentionPhase& p, RunShared& s) {
  constexpr int kPairs = kPhaseHead / 2;
  if (p.turn > 0)
    for (int i = static_cast<int>(threadIdx.x); i < p.documents * kPairs; i += kRunThreads) {
      double sine, cosine;
      sincos(static_cast<double>(s.position[i / kPairs]) *
                 pow(p.turn, -static_cast<double>(i % kPairs) / static_cast<double>(kPairs)),
             &sine, &cosine);
      s.cosine[i / kPairs][i % kPairs] = static_cast<float>(cosine);
      s.sine[i / kPairs][i % kPairs] = static_cast<float>(sine);
    }
}

__device__ inline void compute(const AttentionPhase& p, RunShared& s, RingAt& at) {
  using Features = Pack<bf16>;
  constexpr int V = Features::kSize, kPairs = kPhaseHead / 2;
  const int team = static_cast<int>(threadIdx.x) / kTeamThreads,
            thread = static_cast<int>(threadIdx.x) % kTeamThreads, lane = thread % kKeyLanes,
            own = thread / kKeyLanes;
  const ShareOfKeys share[kTeams] = {{p, s, 0}, {p, s, 1}};
  float* const room = s.room + team * (kTileSums * kSums / kTeams);
  bf16* const fresh = reinterpret_cast<bf16*>(s.fresh) + team * 3 * kPhaseHead;
  bf16 *const fresh_k = fresh + kPhaseHead, *const fresh_v = fresh_k + kPhaseHead;
  float q[V];
  int document = -1, head = -1, parts = 0, done = 0;  // of the head under way
  // This team is through with some parts of a head; whoever is the last merges them all.
  const auto leave_head = [&] {
    if (parts <= 1 || p.sent.parts) return;
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
    team_meets(team);
    int& arrived = run_arrivals[document * p.heads + head];
    if (thread == 0) {
      s.last[team] = atomicAdd(&arrived, done) + done == parts;
      if (s.last[team]) arrived = 0;  // before the fence and o: who has seen o counts from there
    }
    team_meets(team);
    if (!s.last[team]) return;
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
    merge_parts(p, s, int64_t{document} * p.heads + head, parts, team, room);
  };
  const int rounds = max(share[0].last - share[0].first, share[1].last - share[1].first);
  for (int round = 0; round <= rounds; ++round) {
    const KeysOfItem item = share[team].item(p, s, round), other = share[1 - team].item(p, s, round);
    const int slots = max(slots_of(item), slots_of(other));
    const bool any = item.parts > 0;
    const int64_t m = item.document, row = m * p.heads + item.head;
    const bool other_head = any && (item.document != document || item.head != head);
    if (other_head || round == rounds) leave_head();
    if (other_head) {
      document = item.document, head = item.head, parts = item.parts, done = 0;
      const int64_t at = head * kPhaseHead + (p.sent.from ? s.half : 0);
      const bf16 *q_new = p.q + m * p.q_pitch + at, *k_new = p.k + m * p.k_pitch + at,
                 *v_new = p.v + m * p.v_pitch + at;
      team_meets(team);  // the head before is done with these
      // Pairs of q that are turned together are half a head apart, and those of k.
      const int j = thread % kPairs;
      const bf16* from = (thread < kPairs ? q_new : k_new) + j;
      bf16* to = (thread < kPairs ? fresh : fresh_k) + j;
      float of_new[3];
      see(of_new, {from, from + kPairs, v_new + thread}, p.sent.from);
      if (p.turn > 0) {
        const float a = of_new[0], b = of_new[1], cosine = s.cosine[document][j], sine = s.sine[document][j];
        of_new[0] = fma(a, cosine, -(b * sine));
        of_new[1] = fma(b, cosine, a * sine);
      }
      to[0] = static_cast<bf16>(of_new[0]);
      to[kPairs] = static_cast<bf16>(of_new[1]);
      fresh_v[thread] = static_cast<bf16>(of_new[2]);
      team_meets(team);
      const Features x = *reinterpret_cast<const Features*>(fresh + lane * V);
#pragma unroll
      for (int j = 0; j < V; ++j) q[j] = kLog2E * p.scale * static_cast<float>(x.v[j]);
    }
    if (any && item.end == item.at + 1) {  // the new token joins the past, for the next step to read
      void* const* cache = p.caches + 4 * m;
      const int64_t place = (int64_t{item.at} * p.heads + head) * kPhaseHead + thread;
      static_cast<bf16*>(cache[0])[place] = fresh_k[thread];
      static_cast<bf16*>(cache[1])[place] = fresh_v[thread];
      if (thread == 0 && head == 0) {
        static_cast<int32_t*>(cache[2])[item.at] = p.position[m];
        static_cast<int32_t*>(cache[3])[item.at] = p.document[m];
      }
    }
    float sum[V] = {}, top = -INFINITY, total = 0;
    const int past_end = min(item.end, item.at);
    for (int step = 0; step < slots; ++step) {
      RingAt mine = at, next = at;
      next.next();
      if (team == 1) mine = next;
      s.full[at.slot].wait(at.phase);
      s.full[next.slot].wait(next.phase);
      const int base = item.begin + step * kKeysOfSlot;
      if (base >= item.end) {
        free_slot(s, at);
        free_slot(s, next);
        at = next;
        at.next();
        continue;
      }
      uint4 k[kAbreastKeys], v[kAbreastKeys];
      const auto* keys = reinterpret_cast<const uint4*>(s.ring[mine.slot]);
#pragma unroll
      for (int a = 0; a < kAbreastKeys; ++a) {
        const int i = (a * kKeyGroups + own) * kKeyLanes + lane;
        k[a] = keys[i];
        v[a] = keys[i + kKeysOfSlot * kKeyLanes];
      }
      const int left = past_end - base - own;  // of the past, from this lane's first one on
      const bool whole = base + kKeysOfSlot <= past_end;
      if (!whole)
#pragma unroll
        for (int a = 0; a < kAbreastKeys; ++a) {
          if (a * kKeyGroups < left) continue;
          const bool is_new = base + a * kKeyGroups + own == item.at;
          k[a] = is_new ? *reinterpret_cast<const uint4*>(fresh_k + lane * V) : uint4{};
          v[a] = is_new ? *reinterpret_cast<const uint4*>(fresh_v + lane * V) : uint4{};
        }
      float score[kAbreastKeys], highest = top;
#pragma unroll
      for (int a = 0; a < kAbreastKeys; ++a) {
        const uint32_t pairs[4] = {k[a].x, k[a].y, k[a].z, k[a].w};
        float dot = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 of_pair = floats_of(pairs[j]);
          dot += q[2 * j] * of_pair.x;
          dot += q[2 * j + 1] * of_pair.y;
        }
        score[a] = dot;
      }
      free_slot(s, at);
      free_slot(s, next);
      at = next;
      at.next();
#pragma unroll
      for (int step_of = kKeyLanes / 2; step_of > 0; step_of /= 2)
#pragma unroll
        for (int a = 0; a < kAbreastKeys; ++a) score[a] += __shfl_xor_sync(~0u, score[a], step_of);
#pragma unroll
      for (int a = 0; a < kAbreastKeys; ++a) {
        if (!whole && base + a * kKeyGroups + own >= item.end) score[a] = -INFINITY;
        highest = score[a] > highest ? score[a] : highest;
      }
      const float shift = highest == -INFINITY ? 0.f : highest, shrink = exp2f(top - shift);
      top = highest;
      total *= shrink;
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] *= shrink;
#pragma unroll
      for (int a = 0; a < kAbreastKeys; ++a) {
        const float weight = exp2f(score[a] - shift);
        total += weight;
        const uint32_t pairs[4] = {v[a].x, v[a].y, v[a].z, v[a].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 of_pair = floats_of(pairs[j]);
          sum[2 * j] += weight * of_pair.x;
          sum[2 * j + 1] += weight * of_pair.y;
        }
      }
    }
    if (!any) continue;
    // The groups of lanes one after another.
    float *tops = room, *totals = tops + kKeyGroups, *sums = totals + kKeyGroups;
    team_meets(team);  // the item before is done with these
    if (lane == 0) tops[own] = top, totals[own] = total;
#pragma unroll
    for (int j = 0; j < V; ++j) sums[own * kPhaseHead + lane * V + j] = sum[j];
    team_meets(team);
    float peak = -INFINITY, all = 0, y = 0;
    for (int x = 0; x < kKeyGroups; ++x) peak = max(peak, tops[x]);
    for (int x = 0; x < kKeyGroups; ++x) {
      const float part = exp2f(tops[x] - peak);
      all += part * totals[x];
      y += part * sums[x * kPhaseHead + thread];
    }
    const float lse = static_cast<float>(1 / 1.4426950408889634) * (peak + std::log2(all));
    if (item.parts == 1) {
      give(p, s, row, thread, y / all);
      if (thread == 0 && p.lse != nullptr) p.lse[row] = lse;
    } else {
      const int64_t at = row * p.splits + item.part + (p.sent.parts ? s.half / 2 / kPhaseHead : 0);
      if (p.sent.parts) {
        send(p.part_o + at * kPhaseHead + thread, y / all);
        if (thread == 0) send(p.part_lse + row * p.splits + item.part + s.half / 2, lse);
      } else {
        p.part_o[at * kPhaseHead + thread] = y / all;
        if (thread == 0) p.part_lse[at] = lse;
      }
    }
    ++done;
  }
  if (!p.sent.parts) return;
  // Whoever has the last part of a head merges all, behind its own parts: so nobody waits for a team that
  // waits.
  team_meets(team);
  for (int i = share[team].first; i < share[team].last;) {
    const KeysOfItem item = share[team].item(p, s, i - share[team].first);
    i += item.parts - item.part;
    if (i <= share[team].last && item.parts > 1)
      merge_parts(p, s, int64_t{item.document} * p.heads + item.head, item.parts, team, room);
  }
}

}  // namespace weft::cuda
