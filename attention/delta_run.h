#pragma once
// The delta rule over whole segments by one kernel: what a Scan composes of chunks, as one op.

#include "attention/segment_run.h"
#include "autograd/tape.h"

namespace weft {

struct DeltaRun {
  Variable o;            // (N, H, Dv), in v's dtype
  Variable final_state;  // (segments, H, Dk, Dv) f32 (f64), after each segment; undefined if not wanted
};

// S <- e^{g_t} S, S <- S + k_t (beta_t (v_t - S^T k_t))^T, o_t = scale S^T q_t, from S = initial_state before
// the first token of a segment.
//   q, k (N, H, Dk), v (N, H, Dv), beta (N, H), g (N, H) <= 0 or undefined for none, initial_state like
//   `final_state` or undefined for zero
DeltaRun delta_run(const Variable& q, const Variable& k, const Variable& v, const Variable& beta,
                   const Variable& g, const Variable& initial_state, double scale, const Layout& layout,
                   bool want_final_state);

// What the kernels read. On a GPU all of it is dense, on a CPU q, k and v may have a pitch.
struct DeltaInputs {
  Tensor q, k, v;
  Tensor beta, g, initial_state;  // wide; g and initial_state may be undefined
  Tensor offsets;                 // (documents + 1) i32: where segments begin, and the end of the last
  double scale;
  int documents;
};
struct DeltaGradients {
  Tensor q, k, v, beta, g, initial_state;  // g and initial_state where there are such inputs
};

// final_state, d_final_state: undefined if not wanted. kept and workspace have the sizes that *_run_buffers
// gave.
namespace cpu {
void delta_run_buffers(RunBuffers& buffers, const DeltaInputs& x, bool backward_follows);
void delta_run_forward(const Tensor& o, const Tensor& final_state, const Tensor& kept, const DeltaInputs& x,
                       bool backward_follows);
void delta_run_backward(const DeltaGradients& d, const Tensor& workspace, const DeltaInputs& x,
                        const Tensor& kept, const Tensor& d_o, const Tensor& d_final_state);
}  // namespace cpu
namespace cuda {
void delta_run_buffers(RunBuffers& buffers, const DeltaInputs& x, bool backward_follows);
void delta_run_forward(const Tensor& o, const Tensor& final_state, const Tensor& kept, const DeltaInputs& x,
                       bool backward_follows);
void delta_run_backward(const DeltaGradients& d, const Tensor& workspace, const DeltaInputs& x,
                        const Tensor& kept, const Tensor& d_o, const Tensor& d_final_state);
}  // namespace cuda

}  // namespace weft
