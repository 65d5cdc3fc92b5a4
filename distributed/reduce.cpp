#include "distributed/reduce.h"

#include <algorithm>
#include <vector>

namespace weft {
namespace {

template <class A>
A fold(A a, A b, Reduce op) {
  if (op == Reduce::max) return b > a || b != b ? b : a;
  if constexpr (std::is_integral_v<A>)
    return static_cast<A>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
  else
    return a + b;
}

// In blocks that stay in the cache, widened to A.
template <class T, class A>
void reduce_typed(T* out, const T* parts, int ranks, int64_t count, Reduce op) {
  constexpr int64_t block = 512;
  std::vector<A> wide(static_cast<size_t>(ranks) * block);
  for (int64_t begin = 0; begin < count; begin += block) {
    const int64_t n = std::min(block, count - begin);
    for (int r = 0; r < ranks; ++r)
      for (int64_t i = 0; i < n; ++i) wide[r * block + i] = static_cast<A>(parts[r * count + begin + i]);
    for (int stride = 1; stride < ranks; stride *= 2)
      for (int r = 0; r + stride < ranks; r += 2 * stride) {
        A* left = &wide[r * block];
        const A* right = &wide[(r + stride) * block];
        for (int64_t i = 0; i < n; ++i) left[i] = fold(left[i], right[i], op);
      }
    for (int64_t i = 0; i < n; ++i) out[begin + i] = static_cast<T>(wide[i]);
  }
}

}  // namespace

void reduce_over_ranks(void* out, const void* parts, int ranks, int64_t count, Dtype dtype, Reduce op) {
  if (dtype == Dtype::i32)
    return reduce_typed<int32_t, int32_t>(static_cast<int32_t*>(out), static_cast<const int32_t*>(parts),
                                          ranks, count, op);
  with_float(dtype, [&]<class T>() {
    reduce_typed<T, Acc<T>>(static_cast<T*>(out), static_cast<const T*>(parts), ranks, count, op);
  });
}

}  // namespace weft
