#pragma once
// A damped moving average over whole segments in one pass of one kernel (attention/kernels), for devices that
// have it. What the Scan of a DampedEma composes of chunks, with nothing stored between them.

#include "autograd/layout.h"
#include "autograd/tape.h"

namespace weft {

// size: states of a channel
bool has_ema_run(Device device, Dtype dtype, int64_t size);

struct EmaRun {
  Variable y;            // (T, C), in x's dtype
  Variable final_state;  // (segments, C, N) f32: the state after each segment; undefined if not wanted
};

// h_t = decay h_{t-1} + in x_t, y_t = sum over N of out h_t, from h = initial_state before the first token of
// a segment.
//   x (T, C); in, out, decay (C, N) f32; initial_state like `final_state`, or undefined for zero
EmaRun ema_run(const Variable& x, const Variable& in, const Variable& out, const Variable& decay,
               const Variable& initial_state, const Layout& layout, bool want_final_state);

}  // namespace weft
