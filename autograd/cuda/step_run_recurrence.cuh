#pragma once
// A recurrent step as a phase of a run: the arithmetic of recurrent_step_kernel (attention/), to the bit. A
// block takes whole states, which lie as one piece, and writes them back from its registers.

#include "autograd/cuda/step_run.cuh"

namespace weft::cuda {

constexpr int kSlotFloats = 4096, kSlotRows = kSlotFloats / kPhaseHead, kStateSlots = kPhaseHead / kSlotRows;
static_assert(kSlotFloats * 4 <= kSlotBytes);

__device__ inline void produce(const RecurrencePhase& p, RunShared& s, LoaderAt& at, int loader) {
  constexpr int kPiece = kSlotFloats / kLoaders;
  const bool copies = threadIdx.x % kWarp == 0;
  for (int i = static_cast<int>(blockIdx.x); i < p.documents * p.heads; i += static_cast<int>(gridDim.x)) {
    const float* state = p.states[i / p.heads] + int64_t{i % p.heads} * kPhaseHead * kPhaseHead;
    for (int j = 0; j < kStateSlots; ++j) {
      begin_slot(s, at, kPiece * 4);
      if (copies)
        s.full[at.slot].load(s.ring[at.slot] + loader * kPiece * 4, state + j * kSlotFloats + loader * kPiece,
                             kPiece * 4);
      end_slot(s, at);
    }
  }
}

__device__ inline void compute(const RecurrencePhase& p, RunShared& s, RingAt& at) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / static_cast<int>(kWarp),
            lane = thread % static_cast<int>(kWarp);
  float *q = s.fresh, *k = q + kPhaseHead, *decay = k + kPhaseHead;
  for (int item = static_cast<int>(blockIdx.x); item < p.documents * p.heads;
       item += static_cast<int>(gridDim.x)) {
    const int64_t m = item / p.heads, head = item % p.heads;
    float* const state = p.states[m] + head * kPhaseHead * kPhaseHead;
    const int i = thread % kPhaseHead;
    const int64_t at_head = head * kPhaseHead + (p.sent.from ? s.half : 0);
    const bf16* const v = p.v + m * p.v_pitch + at_head + 4 * lane;
    float fresh[5];
    see(fresh,
        {thread < kPhaseHead ? p.q + m * p.q_pitch + at_head + i : p.k + m * p.k_pitch + at_head + i, v,
         v + 1, v + 2, v + 3},
        p.sent.from);
    (thread < kPhaseHead ? q : k)[i] = fresh[0];
    if (thread < kPhaseHead) {
      const float* g = p.g == nullptr ? nullptr
                       : p.channels   ? p.g + m * p.g_pitch + head * kPhaseHead + i
                                      : p.g + m * p.g_pitch + head;
      decay[i] = g == nullptr ? 1.f : std::exp(__ldcg(g));
    }
    const float u[4] = {fresh[1], fresh[2], fresh[3], fresh[4]};
    run_meets();
    float sum[4] = {};
    for (int j = 0; j < kStateSlots; ++j) {
      s.full[at.slot].wait(at.phase);
      float4 held[kSlotRows / kFewWarps];
#pragma unroll
      for (int i = 0; i < kSlotRows / kFewWarps; ++i)
        held[i] = reinterpret_cast<const float4*>(
            s.ring[at.slot])[(i * kFewWarps + warp) * (kPhaseHead / 4) + lane];
      free_slot(s, at);
      at.next();
#pragma unroll
      for (int i = 0; i < kSlotRows / kFewWarps; ++i) {
        const int row = j * kSlotRows + i * kFewWarps + warp;
        float x[4] = {held[i].x, held[i].y, held[i].z, held[i].w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          x[e] = decay[row] * x[e] + k[row] * u[e];
          sum[e] += q[row] * x[e];
        }
        reinterpret_cast<float4*>(state)[row * (kPhaseHead / 4) + lane] = {x[0], x[1], x[2], x[3]};
      }
    }
    reinterpret_cast<float4*>(s.room)[warp * (kPhaseHead / 4) + lane] = {sum[0], sum[1], sum[2], sum[3]};
    run_meets();
    if (thread < kPhaseHead) {
      float total = 0;
#pragma unroll
      for (int i = 0; i < kFewWarps; ++i) total += s.room[i * kPhaseHead + thread];
      const int64_t to = (m * p.heads + head) * kPhaseHead + thread;
      if (p.sent.to != nullptr) send_pair(p.sent.to + s.half + to, p.scale * total, true);
      if (p.o != nullptr) p.o[to] = static_cast<bf16>(p.scale * total);
    }
    run_meets();  // the next one's numbers take the places of these
  }
}

}  // namespace weft::cuda
