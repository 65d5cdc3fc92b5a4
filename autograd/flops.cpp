#include "autograd/flops.h"

#include "autograd/checkpoint.h"

namespace weft {
namespace {
thread_local double total = 0, again = 0;
}

void count_flops(double operations) {
  total += operations;
  if (recomputing()) again += operations;
}
void count_repeated_flops(double operations, double recomputed) {
  total += operations;
  again += recomputed;
}
double counted_flops() { return total; }
double recomputed_flops() { return again; }

}  // namespace weft
