#pragma once
// The stages of the chunked delta rule (delta_rule.md) and what they hand on in memory: of every
// chunk and head a few tiles, as they lie in shared memory (tile.cuh).

#include "attention/kernels/delta_rule.h"
#include "attention/kernels/sweep.h"
#include "attention/kernels/tensor_map.h"

namespace weft::cuda {

struct DeltaStages {
  int64_t tokens = 0;
  int documents = 1;
  const int* offsets = nullptr;
  int heads = 0, d_k = 0, d_v = 0;
  float scale = 1;
  const float *beta = nullptr, *log_decay = nullptr;
  // By slot (delta_chunk.cuh) and head:
  float* gates = nullptr;    // the decay's log2 summed over the chunk (64), then beta (64); zero past the end
  char* inverse = nullptr;   // T = (I + A)^-1, bf16 (64, 64)
  char* scores = nullptr;    // P_ij = scale exp(c_i - c_j) (q_i . k_j) for j <= i, bf16 (64, 64)
  char* writes = nullptr;    // U, bf16 (64, d_v); null: not kept
  char* states = nullptr;    // S^T before the chunk, bf16 (d_v / 64, 64, d_k); null: not kept
  char* d_rhs = nullptr;     // R = T^T dU, like writes
  char* d_states = nullptr;  // dS^T / scale after the chunk, like states
};

// Chunks have slots, some of which stay empty.
inline int64_t delta_slots(int64_t tokens, int documents) { return tokens / 64 + documents; }

// Rows of all tokens, and for wgmma what TMA has to know of them.
template <class R>
struct Mapped {
  CUtensorMap map;
  R rows;
};
using MappedRows = Mapped<Rows>;
template <class R>
Mapped<R> mapped(const DeltaStages& s, bool wgmma, R rows, int width) {
  Mapped<R> m{{}, rows};
  if (wgmma && s.tokens > 0) m.map = tensor_map(rows.data, rows.pitch, width, s.heads, s.tokens, 64);
  return m;
}

// gates, inverse and scores, for all chunks at once
void delta_inverse(const DeltaStages& s, bool wgmma, const MappedRows& q, const MappedRows& k,
                   cudaStream_t stream);
// Chunk by chunk, from inverse and scores: o, the final state, and writes and states where they are kept.
void delta_forward(const DeltaStages& s, bool wgmma, const MappedRows& q, const MappedRows& k,
                   const MappedRows& v, const float* state_in, MutableRows o, float* state_out,
                   cudaStream_t stream);
// Chunk by chunk from the end: d_rhs, d_states, the initial state's gradient.
void delta_reverse(const DeltaStages& s, bool wgmma, const MappedRows& q, const MappedRows& k,
                   const MappedRows& d_o, const float* d_state_in, float* d_state_out, cudaStream_t stream);
// All gradients of tokens, for all chunks at once.
void delta_gradient(const DeltaStages& s, bool wgmma, const MappedRows& q, const MappedRows& k,
                    const MappedRows& v, const MappedRows& d_o, const DeltaRuleGradients& d,
                    cudaStream_t stream);

// The token by token form (delta_plain.cu), any width up to 256, bf16 or f32.
struct DeltaPlain {
  int64_t tokens = 0;
  int documents = 1;
  const int* offsets = nullptr;
  int heads = 0, d_k = 0, d_v = 0;
  float scale = 1;
  const float *beta = nullptr, *log_decay = nullptr;
  Rows q, k, v, d_o;
  const float *state = nullptr, *d_end_state = nullptr;
  MutableRows o;
  float* end_state = nullptr;
  float* error = nullptr;  // v_t - S^T k_t, (tokens, heads, d_v); null: not kept
  // Scratch of the backward pass.
  float* d_write = nullptr;                    // dL/du, (tokens, heads, d_v)
  float* d_k_write = nullptr;                  // (tokens, heads, d_k)
  float *gate_q = nullptr, *gate_k = nullptr;  // row sums, (d_k / 32, tokens, heads)
  float* gate_end = nullptr;                   // (plain_end_parts(d_k), documents, heads)
  DeltaRuleGradients d;
};
void delta_plain_forward(const DeltaPlain& p, Dtype dtype, cudaStream_t stream);
void delta_plain_backward(const DeltaPlain& p, Dtype dtype, cudaStream_t stream);

}  // namespace weft::cuda
