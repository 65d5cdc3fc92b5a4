#pragma once
// Decayed linear attention over whole segments in one pass of one kernel (attention/kernels), for devices
// that have it. What a Scan composes of chunks, with nothing stored between them.

#include "attention/part.h"

namespace weft {

struct LinearRun {
  Variable o;    // (N, H, Dv), in v's dtype
  Variable end;  // (segments, H, Dk, Dv) f32: the state after each segment; undefined if not wanted
};

// S_t = e^{g_t} S_{t-1} + k_t v_t^T, o_t = scale S_t^T q_t, from S = start before the first token of a
// segment. A gate for each channel, (N, H, Dk), stands for a diagonal matrix.
//   q, k (N, H, Dk), v (N, H, Dv), g <= 0: (N, H), (N, H, Dk) or undefined for none, start like `end` or
//   undefined for zero
LinearRun linear_run(const Variable& q, const Variable& k, const Variable& v, const Variable& g,
                     const Variable& start, double scale, const Layout& layout, bool want_end);

// Gives a scan over q, k, v and, if gated, g, with the state {transition, S}, its kernels: of whole segments,
// for GPUs in bf16 and f32 and keys and values of up to 256, and of steps.
void use_linear_run(Scan& scan, double scale, bool gated, int64_t key, int64_t value, Dtype dtype);

}  // namespace weft
