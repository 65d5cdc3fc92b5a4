#pragma once
// A loop over [0, n) on all cores: f(begin, end) on disjoint ranges of at least `grain` items. The split
// depends on n, grain and the thread count only, and no two ranges share a result, so results do not depend
// on the split.

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace weft {

// Multiplications of matrix products, at full speed, for which a second core is worth its start. Loops whose
// multiplications take longer are worth it for fewer.
constexpr int64_t kWorthACore = 1 << 20;

template <class F>
void parallel_for(int64_t n, int64_t grain, F&& f) {
  const int64_t parts =
      std::min<int64_t>(omp_in_parallel() ? 1 : omp_get_max_threads(), n / std::max<int64_t>(1, grain));
  if (parts <= 1) {
    if (n > 0) f(int64_t{0}, n);
    return;
  }
#pragma omp parallel for schedule(static, 1) num_threads(static_cast <int>(parts))
  for (int64_t p = 0; p < parts; ++p) f(n * p / parts, n * (p + 1) / parts);
}

}  // namespace weft
