#pragma once

namespace weft {

// Whether equal runs give equal bits, a recipe's `determinism: run`. Without it kernels may add in another
// order each time. For the whole process; true until it is set.
bool deterministic();
void set_deterministic(bool value);

}  // namespace weft
