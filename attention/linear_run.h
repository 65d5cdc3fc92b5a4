#pragma once
// Decayed linear attention over whole segments in one op: what a Scan composes of chunks, with nothing stored
// between them. On the CPU for all types and widths, on GPUs by the kernels of attention/kernels.

#include "attention/part.h"
#include "autograd/layout_bounds.h"

namespace weft {

struct LinearRun {
  Variable o;    // (N, H, Dv), in v's dtype
  Variable end;  // (segments, H, Dk, Dv) f32 (f64): the state after each segment; undefined if not wanted
};

// S_t = e^{g_t} S_{t-1} + k_t v_t^T, o_t = scale S_t^T q_t, from S = start before the first token of a
// segment. A gate for each channel, (N, H, Dk), stands for a diagonal matrix.
//   q, k (N, H, Dk), v (N, H, Dv), g <= 0: (N, H), (N, H, Dk) or undefined for none, start like `end` or
//   undefined for zero
LinearRun linear_run(const Variable& q, const Variable& k, const Variable& v, const Variable& g,
                     const Variable& start, double scale, const Layout& layout, bool want_end);

// Gives a scan over q, k, v and, if gated, g, with the state {transition, S}, its kernels: of whole segments
// (on a GPU in bf16 and f32, for keys and values of up to 256), and of steps.
void use_linear_run(Scan& scan, double scale, bool gated, int64_t key, int64_t value, Dtype dtype);

// What kernels are told. Rows of q, k and v may have a pitch.
struct LinearRunProblem {
  Tensor q, k, v;
  Tensor g;        // f32 (f64), dense; (H) where it is the same for all tokens; undefined: none
  Tensor start;    // dense; undefined: zero
  Tensor offsets;  // (documents + 1) i32: where segments begin, and the end of the last
  DocumentBounds bounds;
  double scale;
};
struct LinearRunGradients {
  Tensor q, k, v, g, start;  // g, start undefined: not wanted
};

// end, d_end: undefined if not wanted, or none. kept goes from the forward to the backward pass; both it and
// `workspace` have the sizes below, in bytes, and are undefined where these are 0.
namespace cpu {
int64_t linear_run_kept(const LinearRunProblem& p);
int64_t linear_run_workspace(const LinearRunProblem& p, bool backward);
void linear_run_forward(const LinearRunProblem& p, const Tensor& o, const Tensor& end, const Tensor& kept,
                        const Tensor& workspace);
void linear_run_backward(const LinearRunProblem& p, const Tensor& d_o, const Tensor& d_end,
                         const Tensor& kept, const LinearRunGradients& d, const Tensor& workspace);
}  // namespace cpu
namespace cuda {
int64_t linear_run_kept(const LinearRunProblem& p);
int64_t linear_run_workspace(const LinearRunProblem& p, bool backward);
void linear_run_forward(const LinearRunProblem& p, const Tensor& o, const Tensor& end, const Tensor& kept,
                        const Tensor& workspace);
void linear_run_backward(const LinearRunProblem& p, const Tensor& d_o, const Tensor& d_end,
                         const Tensor& kept, const LinearRunGradients& d, const Tensor& workspace);
}  // namespace cuda

}  // namespace weft
