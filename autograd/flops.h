#pragma once
// Floating-point operations, counted where they are spent: products of matrices and attention. The counter is
// this thread's; a dry run on the meta device counts what a real step would do.

namespace weft {

void count_flops(double operations);
double counted_flops();  // since the thread started; take differences
// Of these, what a checkpointed function spent when it ran again (autograd/checkpoint.h).
double recomputed_flops();
// Those of work that a device repeats without its ops: so many, `recomputed` of them by checkpoints.
void count_repeated_flops(double operations, double recomputed);

}  // namespace weft
