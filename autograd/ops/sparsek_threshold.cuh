#pragma once
// The threshold of SPARSEK (sparsek.h), found by a warp.

#include <cmath>

#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {

// The tau of sum clip(z - top - tau, 0, 1) = k, more than k elements being there. With u elements at 1 and w
// of sum s in between, that is (u + s - k) / w, as long as the same elements stay there: so Newton's steps
// end. Where one leaves the bracket, or nothing is in between, the bracket is halved. The first try is the
// `tau` given. share.for_each(f) calls f(index, z) for this lane's part of the elements.
template <class S>
__device__ double sparsek_threshold(const S& share, double top, double lowest, int64_t k, double tau) {
  double low = lowest - top - 1, high = 0;  // `low` keeps too much, or just enough; `high` nothing
  int last_one = -1, last_part = -1;
  for (;;) {
    int one = 0, part = 0;
    double sum = 0;
    share.for_each([&](int64_t, double z) {
      const double above = z - top - tau;
      if (above >= 1) {
        ++one;
      } else if (above > 0) {
        ++part;
        sum += z - top;
      }
    });
    one = static_cast<int>(__reduce_add_sync(0xffffffffu, one));
    part = static_cast<int>(__reduce_add_sync(0xffffffffu, part));
    sum = warp_sum(sum);
    if (part == 0 && one == k) return tau;
    const double newton = part > 0 ? (static_cast<double>(one - k) + sum) / part : NAN;
    if (newton == tau || (one == last_one && part == last_part && part > 0)) return newton;
    last_one = one;
    last_part = part;
    const double kept = one + sum - part * tau;
    (kept > static_cast<double>(k) ? low : high) = tau;
    const double middle = low + (high - low) / 2;
    const double next = newton > low && newton < high ? newton : middle;
    // The bracket has no number inside; NaN ends here too.
    if (!(next > low && next < high)) return part > 0 ? newton : tau;
    tau = next;
  }
}

}  // namespace weft::cuda
