#pragma once
// Causal linear attention with decay, over packed documents, on the GPU.
//
//   S_t = exp(g_t) S_{t-1} + k_t v_t^T          S (d_k, d_v) in f32, one per document and head
//   o_t = scale * S_t^T q_t
//
// g is absent (plain linear attention), constant per head (retention, TransNormer, Lightning Attention),
// given per token and head (scalar gate, the Mamba-2 form) or per token, head and channel of the keys (GLA:
// exp(g_t) is a diagonal matrix). README.md and channel_gate.md derive the chunked forms. Nothing of size
// (tokens, d, d) is ever stored. Results have the same bits from run to run.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "autograd/dtype.h"

namespace weft::cuda {

// Which kernel computes. automatic: wgmma on compute capability 9.0, else mma, else (f32, or a width without
// tiles) plain. A gate of channels has tiles for widths of 64 and 128.
enum class Path { automatic, plain, mma, wgmma };

// What log_decay is: (heads), (tokens, heads), (tokens, heads, d_k).
enum class Gate { fixed, head, channel };

// Element (token n, head h, channel c) is at data[n * pitch + h * d + c]; a column range of a packed
// projection is such a view.
struct Rows {
  const void* data = nullptr;
  int64_t pitch = 0;  // elements from one token to the next
};
struct MutableRows {
  void* data = nullptr;
  int64_t pitch = 0;
};

struct LinearAttention {
  int64_t tokens = 0;  // of all documents together
  int documents = 1;
  const int* offsets =
      nullptr;  // (documents + 1) on the device, or null: all documents have tokens / documents tokens
  int64_t longest = 0;  // tokens of the longest document, 0 if not known
  int heads = 0, d_k = 0, d_v = 0;
  Dtype dtype = Dtype::bf16;  // of q, k, v, o and, but for wide_gradients, theirs: bf16 or f32
  float scale = 1;            // > 0
  // g <= 0: null, or as `gate` says. That of channels is aligned to 16 bytes for tiles.
  const float* log_decay = nullptr;
  Gate gate = Gate::fixed;
  Path path = Path::automatic;
  // Long documents of few heads are cut into segments that run side by side, of so many tokens, a multiple of
  // 64; 0: never; -1: as sizes suggest. Not on the plain path.
  int64_t segment = -1;
  // Of bf16, and not with a gate of channels: dq and dk are f32, and precise enough for sums over positions
  // that nearly cancel (README, "Gradients in f32").
  bool wide_gradients = false;
};

// o (tokens, heads, d_v). States are (documents, heads, d_k, d_v) f32; a null initial state is zero, a null
// final one is not wanted. kept: linear_attention_kept(shape) bytes, null if that is 0; backward wants them
// as they are left.
void linear_attention_forward(const LinearAttention& shape, Rows q, Rows k, Rows v,
                              const float* initial_state, MutableRows o, float* final_state, void* kept,
                              cudaStream_t stream);

struct LinearAttentionGradients {
  MutableRows q, k, v;
  float* initial_state = nullptr;  // null: not wanted
  float* log_decay = nullptr;      // as the gate, unless that is fixed; null: not wanted
  const void* kept = nullptr;      // by the forward pass
  void* workspace = nullptr;       // linear_attention_workspace(shape) bytes, null if that is 0
};

// d_final_state may be null.
void linear_attention_backward(const LinearAttention& shape, Rows q, Rows k, Rows v,
                               const float* initial_state, Rows d_o, const float* d_final_state,
                               const LinearAttentionGradients& d, cudaStream_t stream);

// Both aligned to 16 bytes. Where documents of few heads are cut, the states between segments, and for the
// gradient of a gate a few f32 per token and head, or per document and channel.
int64_t linear_attention_kept(const LinearAttention& shape);
int64_t linear_attention_workspace(const LinearAttention& shape);  // of backward

}  // namespace weft::cuda
