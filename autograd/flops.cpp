#include "autograd/flops.h"

namespace weft {
namespace {
thread_local double total = 0, of_one_pair = 0;
}

void count_flops(double operations) { total += operations; }
double counted_flops() { return total; }
void note_flops_of_a_pair(double operations) { of_one_pair += operations; }
double noted_flops_of_a_pair() { return of_one_pair; }

}  // namespace weft
