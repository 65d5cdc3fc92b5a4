#pragma once
// The delta rule over whole segments by the kernels of attention/kernels, for devices that have them: what a
// Scan composes of chunks, as one op. Saved for the backward, for every 64 tokens and head: the inverse of
// their system, what they write, and the state before them (bf16; in f32 only what they write).

#include "autograd/layout.h"
#include "autograd/tape.h"

namespace weft {

bool has_delta_run(Device device, Dtype dtype, int64_t key_size, int64_t value_size);

struct DeltaRun {
  Variable o;    // (N, H, Dv), in v's dtype
  Variable end;  // (segments, H, Dk, Dv) f32: the state after each segment; undefined if not wanted
};

// S <- e^{g_t} S, S <- S + k_t (beta_t (v_t - S^T k_t))^T, o_t = scale S^T q_t, from S = start before the
// first token of a segment.
//   q, k (N, H, Dk), v (N, H, Dv), beta (N, H), g (N, H) <= 0 or undefined for none, start like `end` or
//   undefined for zero
DeltaRun delta_run(const Variable& q, const Variable& k, const Variable& v, const Variable& beta,
                   const Variable& g, const Variable& start, double scale, const Layout& layout,
                   bool want_end);

}  // namespace weft
