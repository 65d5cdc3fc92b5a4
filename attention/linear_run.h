#pragma once
// Decayed linear attention over whole segments in one op: what a Scan composes of chunks, with nothing stored
// between them. On the CPU for all types and widths, on GPUs by the kernels of attention/kernels.

#include "attention/part.h"
#include "attention/segment_run.h"

namespace weft {

struct LinearRun {
  Variable o;            // (N, H, Dv), in v's dtype
  Variable final_state;  // (segments, H, Dk, Dv) f32 (f64), after each segment; undefined if not wanted
};

// S_t = e^{g_t} S_{t-1} + k_t v_t^T, o_t = scale S_t^T q_t, from S = initial_state before the first token of
// a segment. A gate for each channel, (N, H, Dk), stands for a diagonal matrix.
//   q, k (N, H, Dk), v (N, H, Dv), g <= 0: (N, H), (N, H, Dk) or undefined for none, initial_state like
//   `final_state` or undefined for zero
// q and k in f32 beside a v in bf16, without a gate for each channel: they are read in bf16, but their
// gradients come in f32 and hold what sums over positions need that nearly cancel.
LinearRun linear_run(const Variable& q, const Variable& k, const Variable& v, const Variable& g,
                     const Variable& initial_state, double scale, const Layout& layout,
                     bool want_final_state);

// Gives a scan over q, k, v and, if gated, g, with the state {transition, S}, its kernels: of whole segments
// (on a GPU in bf16 and f32, for keys and values of up to 256), and of steps. Where q and k are wider than v,
// all are computed as wide as they are, or with `narrow_keys` as linear_run says.
void use_linear_run(Scan& scan, double scale, bool gated, int64_t key, int64_t value, Dtype dtype,
                    bool narrow_keys = false);

// What the kernels read. Rows of q, k and v may have a pitch.
struct LinearInputs {
  Tensor q, k, v;
  Tensor g;              // wide, dense; (H) where it is the same for all tokens; undefined: none
  Tensor initial_state;  // wide, dense; undefined: zero
  Tensor offsets;        // (documents + 1) i32: where segments begin, and the end of the last
  DocumentBounds bounds;
  double scale;
  bool wide_gradients;  // of q and k
};
struct LinearGradients {
  Tensor q, k, v, g, initial_state;  // g, initial_state undefined: not wanted
};

// final_state, d_final_state: undefined if not wanted. kept and workspace have the sizes that *_run_buffers
// gave.
namespace cpu {
void linear_run_buffers(RunBuffers& buffers, const LinearInputs& x, bool backward_follows);
void linear_run_forward(const Tensor& o, const Tensor& final_state, const Tensor& kept,
                        const Tensor& workspace, const LinearInputs& x);
void linear_run_backward(const LinearGradients& d, const Tensor& workspace, const LinearInputs& x,
                         const Tensor& kept, const Tensor& d_o, const Tensor& d_final_state);
}  // namespace cpu
namespace cuda {
void linear_run_buffers(RunBuffers& buffers, const LinearInputs& x, bool backward_follows);
void linear_run_forward(const Tensor& o, const Tensor& final_state, const Tensor& kept,
                        const Tensor& workspace, const LinearInputs& x);
void linear_run_backward(const LinearGradients& d, const Tensor& workspace, const LinearInputs& x,
                         const Tensor& kept, const Tensor& d_o, const Tensor& d_final_state);
}  // namespace cuda

}  // namespace weft
