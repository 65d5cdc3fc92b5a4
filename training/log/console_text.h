#pragma once
// How a step looks on the console: one line, or one bar.

#include <cstdint>
#include <string>

#include "training/log/step_record.h"
#include "training/log/step_timer.h"

namespace weft {

// "step: 10/300  loss: 3.1234  grad_norm: 1.23  lr: 3.0e-04  tok/s: 12,345  mfu: -  mem: 0.52GiB  eta:
// 1m20s", then "  val_loss: 3.2001  val_bpb: 1.2345" where measured. "-" is unknown. Fields may be added at
// the end.
std::string step_line(const StepRecord& record, int64_t steps, const Pace& pace);

// " 45%|########          | 135/300 [01:20<01:38, loss 3.1234, 12,345 tok/s]", ASCII, at most width - 1
// columns, as a character in the last one makes some terminals wrap.
std::string bar_line(const StepRecord& record, int64_t steps, const Pace& pace, int width);

std::string duration_text(double seconds);  // 45s, 1m20s, 2h05m, 3d04h; "-" if not finite
std::string grouped(double number);         // 12345.6 -> "12,346"; "-" if not finite

}  // namespace weft
