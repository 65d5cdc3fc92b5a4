#pragma once
// A flat buffer in blocks of fixed size: each element has the same place in its block whatever the number of
// threads, so that vector loops and their remainders round alike.

#include "autograd/parallel.h"

namespace weft {

inline constexpr int64_t kBlock = int64_t{1} << 14;

inline int64_t block_count(int64_t n) { return (n + kBlock - 1) / kBlock; }

// f(block, begin, end) for all blocks of [0, n), on all cores.
template <class F>
void each_block(int64_t n, F f) {
  parallel_for(block_count(n), 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) f(b, b * kBlock, std::min(n, (b + 1) * kBlock));
  });
}

}  // namespace weft
