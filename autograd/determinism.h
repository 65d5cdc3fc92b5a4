#pragma once

namespace weft {

// Whether equal runs give equal bits, a recipe's `determinism: run`. Without it kernels may serve that add in
// another order each time. Of the process; true until somebody says otherwise.
bool deterministic();
void set_deterministic(bool value);

}  // namespace weft
