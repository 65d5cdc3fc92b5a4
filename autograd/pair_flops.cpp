#include "autograd/pair_flops.h"

namespace weft {
namespace {
thread_local double total = 0;
}

void note_flops_of_a_pair(double operations) { total += operations; }
double noted_flops_of_a_pair() { return total; }

}  // namespace weft
