#pragma once
// A recurrent step as a phase of a run: the arithmetic of recurrent_step_kernel (attention/), to the bit. A
// block takes whole states, which lie as one piece, and writes them back from its registers.

#include "autograd/cuda/step_run.cuh"

namespace weft::cuda {

static_assert(kTeamThreads == kPhaseHead);  // who gives a head's output
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

// What a thread needs of a state's new token: an element of q or k, four of v, and of the gate.
struct NewOfState {
  const bf16* from[5];
  uint32_t words[5];
  float gate = 0;
  bool sent;
  __device__ NewOfState(const RecurrencePhase& p, const RunShared& s, int item) : sent(p.sent.from) {
    const int thread = static_cast<int>(threadIdx.x), i = thread % kPhaseHead;
    const int64_t m = item / p.heads, head = item % p.heads, at = head * kPhaseHead + (sent ? s.half : 0);
    from[0] = thread < kPhaseHead ? p.q + m * p.q_pitch + at + i : p.k + m * p.k_pitch + at + i;
#pragma unroll
    for (int e = 0; e < 4; ++e) from[1 + e] = p.v + m * p.v_pitch + at + thread % kWarp * 4 + e;
    if (p.g != nullptr) gate = __ldcg(p.g + m * p.g_pitch + (p.channels ? head * kPhaseHead + i : head));
    ask();
  }
  __device__ void ask() {
#pragma unroll
    for (int i = 0; i < 5; ++i) words[i] = look(word_of(from[i]));
  }
  __device__ void wait() {
    for (Patience patience;
         sent && max(max(max(words[0], words[1]), max(words[2], words[3])), words[4]) == kNotSent;
         patience.look_again())
      ask();
    __syncwarp();
  }
  __device__ float operator[](int i) const { return half_of(words[i], from[i]); }
};

// norm_held of one head of one row, to the bit: by the first warp, whose lanes have a pack each, and the
// upper half the same. o: the head's row.
__device__ inline void send_normed(const RecurrencePhase& p, const uint4* o, const float4 (&gain)[2],
                                   bf16* to) {
  const int lane = static_cast<int>(threadIdx.x % kWarp), pack = lane % (kPhaseHead / 8);
  const uint4 x = o[pack];
  float squares = sum_of_squares(x);
  for (const int other : {4, 1, 2}) squares += __shfl_xor_sync(~0u, squares, other);
  float sum = 0;
#pragma unroll
  for (int window = 0; window < kPhaseHead / (kWindow * 8); ++window)
    sum += __shfl_sync(~0u, squares, window * kWindow);
  const uint4 y = normed(x, rsqrtf(sum * (1.0f / kPhaseHead) + p.eps), gain);
  if (lane >= kPhaseHead / 8) return;
  auto* const words = reinterpret_cast<uint32_t*>(to) + 4 * pack;
  send(words, y.x), send(words + 1, y.y), send(words + 2, y.z), send(words + 3, y.w);
}

__device__ inline void compute(const RecurrencePhase& p, RunShared& s, RingAt& at) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / static_cast<int>(kWarp),
            lane = thread % static_cast<int>(kWarp), items = p.documents * p.heads,
            stride = static_cast<int>(gridDim.x), first = static_cast<int>(blockIdx.x);
  if (first >= items) return;
  float *q = s.fresh, *k = q + kPhaseHead, *decay = k + kPhaseHead;
  NewOfState next(p, s, first);
  float4 gain[2] = {{1, 1, 1, 1}, {1, 1, 1, 1}};
  if (p.norm && p.gain != nullptr && warp == 0) {
    const auto* from = reinterpret_cast<const float4*>(p.gain) + 2 * (lane % (kPhaseHead / 8));
    gain[0] = __ldg(from), gain[1] = __ldg(from + 1);
  }
  for (int item = first; item < items; item += stride) {
    const int64_t m = item / p.heads, head = item % p.heads;
    float* const state = p.states[m] + head * kPhaseHead * kPhaseHead;
    next.wait();
    (thread < kPhaseHead ? q : k)[thread % kPhaseHead] = next[0];
    if (thread < kPhaseHead) decay[thread] = p.g == nullptr ? 1.f : std::exp(next.gate);
    const float u[4] = {next[1], next[2], next[3], next[4]};
    if (item + stride < items) next = NewOfState(p, s, item + stride);
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
      const float y = p.scale * total;
      bf16* const to_others = p.sent.to == nullptr ? nullptr : p.sent.to + s.half + to - thread;
      if (p.norm) {
        reinterpret_cast<bf16*>(s.row)[thread] = static_cast<bf16>(y);
        team_meets(0);
        if (warp == 0) send_normed(p, s.row, gain, to_others);
      } else if (to_others != nullptr) {
        send_pair(to_others + thread, y, true);
      }
      if (p.o != nullptr) p.o[to] = static_cast<bf16>(y);
    }
    run_meets();  // the next one's numbers take the places of these
  }
}

}  // namespace weft::cuda
