#pragma once
// The one recurrence behind linear attention and all of its gradients (README, "One sweep, four uses").
//
//   out_i = scale * ( decay(i, border) a_i^T state + sum over j of decay(i, j) (a_i . b_j) c_j ),   j <= i,
//   or j >= i when reverse
//
// state (d_a, d_c) is what the sweep has seen: sum of decay b_j c_j^T.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "attention/kernels/linear_attention.h"

namespace weft::cuda {

struct Sweep {
  Rows a, b, c;
  MutableRows out;
  bool reverse = false;
  bool transposed = false;          // states in memory are (d_c, d_a)
  bool wide = false;                // of bf16: out is f32. With pairs; not by wgmma
  const float* state_in = nullptr;  // at the border where the sweep starts; multiplied by state_in_scale
  float* state_out = nullptr;       // at the border where it ends; multiplied by state_out_scale
  float state_in_scale = 1, state_out_scale = 1;
  // With `dot` (tokens, heads, d_c): the row sums of dot * out before rounding, one for each 64 columns (32
  // in the plain kernel) of out, f32 (d_c / 64, tokens, heads). Asks for pairs.
  Rows dot;
  float* dot_sums = nullptr;
  // With end_dot (as state_in): its dot product with the state where the sweep ends, in parts, f32
  // (end_parts, documents, heads).
  const float* end_dot = nullptr;
  float* end_sums = nullptr;
  // With a gate for each channel of c (channel_sweep.h) dot_sums are not wanted, but this: (tokens, heads,
  // d_c) f32; end_sums is (documents, heads, d_c). forward_out: in reverse, what the forward sweep put out.
  float* gate_gradient = nullptr;
  Rows forward_out;
};

constexpr int most_sweeps = 3;

// Sweeps of equal widths, run side by side in one launch.
struct Sweeps {
  int count = 0;
  Sweep sweep[most_sweeps];
  int d_a = 0, d_c = 0;
  int64_t tokens = 0;
  int documents = 1;
  const int* offsets = nullptr;
  int heads = 0;
  float scale = 1, log2_scale = 0;
  const float* log_decay = nullptr;
  bool gated = false;
  bool pairs = false;  // states keep their rounding errors too
};

inline bool exact(const Sweeps& sweeps) {
  if (sweeps.pairs) return true;
  for (int i = 0; i < sweeps.count; ++i)
    if (sweeps.sweep[i].dot_sums) return true;
  return false;
}

constexpr int plain_columns = 32, tile_columns = 64;  // to one row sum

// Parts that end_sums comes in: one for each warp that holds some of the state.
int plain_end_parts(int d_c);
int mma_end_parts(int d_c);
int wgmma_end_parts(int d_a, int d_c);
constexpr int most_end_parts = 64;

void sweep_plain(const Sweeps& sweeps, Dtype dtype, cudaStream_t stream);  // any width up to 256
void sweep_mma(const Sweeps& sweeps, cudaStream_t stream);    // bf16; d_a and d_c in {64, 128, 256}
void sweep_wgmma(const Sweeps& sweeps, cudaStream_t stream);  // the same, compute capability 9.0
void sweep_wide(const Sweeps& sweeps, cudaStream_t stream);   // for it, if d_a is 256 and d_c 128 or 256

// Whether this GPU is of compute capability 9.0, and this build has kernels for sm_90a; not if
// WEFT_KERNELS=mma in the environment wants what other GPUs run (asked at each call, for tests).
bool hopper();

// d_log_decay from the row sums q . dq and k . dk; see the README, "The gradient of the gate".
struct GateGradient {
  int64_t tokens = 0;
  int documents = 1;
  const int* offsets = nullptr;
  int heads = 0, splits = 0, end_parts = 0;
  const float *q_sums = nullptr, *k_sums = nullptr;  // (splits, tokens, heads)
  const float* end_sums = nullptr;  // (end_parts, documents, heads), the final state times its gradient
  float* d_log_decay = nullptr;
};
void gate_gradient(const GateGradient& g, cudaStream_t stream);

inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw Error(Exit::internal, text(what, ": ", cudaGetErrorString(status)));
}

// Without a GPU, where only plans are made, an H100's.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess) {
    cudaGetLastError();
    return attribute == cudaDevAttrComputeCapabilityMajor ? 9
           : attribute == cudaDevAttrMultiProcessorCount  ? 132
                                                          : 227 * 1024;
  }
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

#ifdef __CUDACC__
// The document's first token and its length.
__device__ inline int2 document_range(const Sweeps& s, int document) {
  if (s.offsets) return {s.offsets[document], s.offsets[document + 1] - s.offsets[document]};
  const int length = static_cast<int>(s.tokens / s.documents);
  return {document * length, length};
}
// exp(-104) is 0 in f32; the floor keeps a gate of -inf out of differences.
__device__ inline float to_log2(float log_decay) { return fmaxf(1.44269504f * log_decay, -150.f); }
__device__ inline float log2_decay(const Sweeps& s, int64_t token, int head) {
  return s.log_decay ? to_log2(s.log_decay[s.gated ? token * s.heads + head : head]) : 0;
}
#endif

}  // namespace weft::cuda
