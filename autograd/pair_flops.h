#pragma once
// Of the operations counted (flops.h), those of causal attention depend on the documents at hand.

namespace weft {

// What every pair of tokens that meet in the whole documents of a step takes, there and back: so work that is
// done again for other documents can be counted.
void note_flops_of_a_pair(double operations);
double noted_flops_of_a_pair();  // by this thread so far; take differences

}  // namespace weft
