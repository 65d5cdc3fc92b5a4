#pragma once
// Floating-point operations, counted where they are spent: products of matrices and attention. The counter is
// this thread's; a dry run on the meta device counts what a real step would do.

namespace weft {

void count_flops(double operations);
double counted_flops();  // since the thread started; take differences
// Of those counted, what every pair of tokens that meet in the whole documents of a step takes, there and
// back: so work that is done again for other documents can be counted.
void note_flops_of_a_pair(double operations);
double noted_flops_of_a_pair();

}  // namespace weft
