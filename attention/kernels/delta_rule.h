#pragma once
// The delta rule and the gated delta rule over packed documents, on the GPU.
//
//   S   <- exp(g_t) S_{t-1}                            S (d_k, d_v) in f32, one per document and head
//   S_t  = S + k_t (beta_t (v_t - S^T k_t))^T
//   o_t  = scale * S_t^T q_t
//
// Schlag et al. 2021; Yang, Kautz & Hatamizadeh 2024. delta_rule.md derives the form by chunks
// of 64 tokens. Memory is linear in the tokens. Results have the same bits from run to run.

#include "attention/kernels/linear_attention.h"

namespace weft::cuda {

struct DeltaRule {
  int64_t tokens = 0;  // of all documents together
  int documents = 1;
  const int* offsets =
      nullptr;  // (documents + 1) on the device, or null: all documents have tokens / documents tokens
  int heads = 0, d_k = 0, d_v = 0;
  Dtype dtype = Dtype::bf16;         // of q, k, v, o and their gradients: bf16 or f32
  float scale = 1;                   // > 0
  const float* beta = nullptr;       // (tokens, heads)
  const float* log_decay = nullptr;  // g <= 0 (tokens, heads), or null for none
  // mma and wgmma need bf16, widths of 64 or 128, rows aligned to 16 bytes and 227 KB of shared memory a
  // block. automatic takes them wherever dtype, widths and device allow, else plain.
  Path path = Path::automatic;
};

// Bytes, multiples of 256, that forward leaves for backward: the inverse of every chunk's system and, only
// if a backward pass follows, what every chunk writes and the state before it.
int64_t delta_rule_kept(const DeltaRule& shape, bool backward_follows);
// Bytes of scratch for backward.
int64_t delta_rule_workspace(const DeltaRule& shape);

// o (tokens, heads, d_v). States are (documents, heads, d_k, d_v) f32; a null initial state is zero, a null
// final one is not wanted. `kept` has delta_rule_kept() bytes and is aligned to 256.
void delta_rule_forward(const DeltaRule& shape, Rows q, Rows k, Rows v, const float* initial_state,
                        MutableRows o, float* final_state, void* kept, bool backward_follows,
                        cudaStream_t stream);

struct DeltaRuleGradients {
  MutableRows q, k, v;
  float* beta = nullptr;           // (tokens, heads)
  float* log_decay = nullptr;      // (tokens, heads), only with log_decay; null: not wanted
  float* initial_state = nullptr;  // null: not wanted
};

// `kept` as a forward pass over the same inputs left it; d_final_state may be null.
void delta_rule_backward(const DeltaRule& shape, Rows q, Rows k, Rows v, const float* initial_state, Rows d_o,
                         const float* d_final_state, const void* kept, const DeltaRuleGradients& d,
                         void* workspace, cudaStream_t stream);

}  // namespace weft::cuda
