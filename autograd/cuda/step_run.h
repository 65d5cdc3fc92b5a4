#pragma once
// A run of a decoding step's kernels as one kernel. While a recording wants it (replay.h) the launchers of
// these kernels hand over a phase each; whatever else asks for the stream first launches those that wait. A
// block stays on its multiprocessor through all phases, and reads what later ones need of memory that no
// phase writes (weights, keys, states) while it waits for what other blocks send it (step_run.cuh).

#include <cstdint>
#include <functional>

#include "autograd/dtype.h"

namespace weft::cuda {

// How phases of a run pass on rows; for step_run.cu to fill in. Where such an address is one of the exchange,
// it is of its first half.
struct Sent {
  bf16* to;       // in the exchange, laid out as c or o: what this phase makes; null: nobody reads it there
  bool from;      // a, or q, k and v, are in the exchange
  bool residual;  // and so is this
  bool parts;     // and so are part_o and part_lse, which else a counter tells to be there
};

// As few_rows (few_rows.h): c = a b^T of bf16, alpha 1, beta 0.
struct ProductPhase {
  bf16* c;
  float* wide;  // instead of c
  const bf16 *a, *b, *residual;
  const float* gain;
  int64_t n, c_pitch, a_pitch, b_pitch, residual_pitch;
  int rows, packs, parts, windows, units;
  int norm;  // of so many in a row; 0: none
  bool gated;
  float eps;
  int at_once;  // units whose sums a block has room for; set when the run is launched
  Sent sent;
};

// What a block of attention_step, or a team of a run, reads of a document's past depends on that past alone:
// sixteen parts, so that 16 heads are two for each multiprocessor, but of no fewer and no more keys than
// these.
struct KeysOfPart {
  static constexpr int kParts = 16, kRound = 32, kFewest = 128, kMost = 512;
  WEFT_HOST_DEVICE int operator()(int64_t keys) const {
    const int64_t each = ((keys + kParts - 1) / kParts + kRound - 1) / kRound * kRound;
    return static_cast<int>(each < kFewest ? kFewest : each > kMost ? kMost : each);
  }
  // Parts of up to so many keys.
  int64_t most_parts(int64_t keys) const {
    const int64_t few = (keys + kFewest - 1) / kFewest, many = (keys + kMost - 1) / kMost;
    return many > kParts ? many : few < kParts ? few : kParts;
  }
};

// As attention_step (attention/steps.h), for as many key heads as heads, each of kPhaseHead features.
struct AttentionPhase {
  const bf16 *q, *k, *v;
  int64_t q_pitch, k_pitch, v_pitch;
  const int32_t *position, *document;
  void* const* caches;
  bf16* o;
  float* lse;  // null: a later phase of the run writes there
  float *part_o, *part_lse;
  int documents, heads, splits;
  double turn;
  float scale;
  Sent sent;
};

// As recurrent_step (attention/steps.h) without beta, for keys and values of kPhaseHead features.
struct RecurrencePhase {
  const bf16 *q, *k, *v;
  int64_t q_pitch, k_pitch, v_pitch, g_pitch;
  const float* g;  // null: none
  float* const* states;
  bf16* o;
  int documents, heads;
  bool channels;
  float scale;
  bool norm;  // what is sent is normed, head by head, for the next product; set by that one
  const float* gain;
  float eps;
  Sent sent;
};

constexpr int kPhaseHead = 128;
constexpr int kPhaseDocuments = 16;  // at most

// Each adds a phase to the run under way, or begins one. false: the kernel has to be launched by itself.
// alone: does so, where the run turns out to be too short for one.
bool joins_run(const ProductPhase& phase, const std::function<void()>& alone);
bool joins_run(const AttentionPhase& phase, const std::function<void()>& alone);
bool joins_run(const RecurrencePhase& phase, const std::function<void()>& alone);

// Launches the phases that wait. stream() does it.
void launch_run();
void drop_run();
// Whether this GPU has the kernel, and no other process can have blocks beside it (MPS).
bool has_runs();
int64_t launched_runs();  // so far, each as one kernel
// Of the recording under way, and before it begins, since it takes memory; where there is none, there are no
// runs. WEFT_KERNELS=mma in the environment wants what other GPUs run, and so none.
void want_runs(bool on);
void refuse_memory_to_runs(bool on);  // for tests: as if there were none

}  // namespace weft::cuda
