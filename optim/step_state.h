#pragma once
// Everything that changes from one step to the next, in one plain struct: a captured step reads it from one
// place. A trainer keeps one for the whole run; of it only `updates` goes into a checkpoint.

#include <cstdint>
#include <type_traits>

namespace weft {

struct StepState {
  // Set by the trainer.
  double rate = 1;            // share of the highest learning rate, from the schedule
  double gradient_scale = 1;  // what stands in the gradient buffers, times this, is the gradient
  double gradient_norm = 0;   // of the gradient; read by Clip
  bool skip = false;          // leave weights and state alone, to the bit

  // Set by Optimizer::step().
  int64_t updates = 0;     // made so far, this one included; skipped steps do not count
  double clip = 1;         // factor of the gradient
  double correction1 = 1;  // 1 - beta^updates of the first and the second moment
  double correction2 = 1;
  double ema_weight = 1;  // of the new weights in their running mean
};
static_assert(std::is_trivially_copyable_v<StepState>);

}  // namespace weft
