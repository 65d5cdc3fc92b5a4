#pragma once
// The threshold of SPARSEK (sparsek.h) on the CPU.

#include <cstdint>
#include <limits>
#include <vector>

namespace weft::cpu {

// The tau with sum clip(z - tau, 0, 1) = k, for more than k scores z in descending order. With u elements
// at 1 and w above 0, tau = (u + sum of z[u] ... z[w-1] - k) / (w - u), if u and w hold at that tau. As tau
// falls from z[0], either the next element rises above 0 or the highest one below 1 reaches 1: both pointers
// only move forward.
template <class A>
A sparsek_threshold(const std::vector<A>& z, int64_t k) {
  const auto m = static_cast<int64_t>(z.size());
  int64_t u = 0, w = 0;
  A between = 0;  // sum of z[u] ... z[w-1]
  for (;;) {
    if (w > u) {
      const A tau = (A(u - k) + between) / A(w - u);
      const bool enough = (w == m || tau >= z[w]) && tau >= z[u] - 1;
      if (enough) return tau;
    }
    // The higher of the two events comes first.
    if (w < m && (u == w || z[w] >= z[u] - 1))
      between += z[w++];
    else if (u < w)
      between -= z[u++];
    else
      return std::numeric_limits<A>::quiet_NaN();  // of a score that is infinite
  }
}

}  // namespace weft::cpu
