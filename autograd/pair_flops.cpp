#include "autograd/pair_flops.h"

namespace weft {
namespace {
thread_local double of_pairs = 0;
}

void note_flops_of_a_pair(double operations) { of_pairs += operations; }
double noted_flops_of_a_pair() { return of_pairs; }

}  // namespace weft
