#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "autograd/ops/sample.h"
#include "autograd/philox.h"

namespace weft::cpu {
namespace {

template <class T>
int32_t draw(const T* z, int64_t n, uint64_t index, const DrawOptions& draws) {
  if (draws.temperature == 0) return static_cast<int32_t>(std::max_element(z, z + n) - z);
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  const int64_t kept = draws.top_k > 0 ? std::min(draws.top_k, n) : n;
  if (kept < n)
    std::partial_sort(order.begin(), order.begin() + kept, order.end(),
                      [&](int32_t a, int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); });
  double top = -INFINITY, total = 0;
  for (int64_t i = 0; i < kept; ++i) top = std::max(top, static_cast<double>(z[order[i]]));
  std::vector<double> weight(static_cast<size_t>(kept));
  for (int64_t i = 0; i < kept; ++i)
    total += weight[i] = std::exp((static_cast<double>(z[order[i]]) - top) / draws.temperature);
  double left = total * RandomKey{draws.seed, draws.stream, 0}.uniform(index);
  for (int64_t i = 0; i < kept; ++i)
    if ((left -= weight[i]) <= 0) return order[i];
  return order[kept - 1];
}

}  // namespace

void sample_rows(const Tensor& to, const Tensor& logits, const Tensor& index, const DrawOptions& draws) {
  with_float(logits.dtype(), [&]<class T>() {
    if constexpr (!std::is_same_v<T, bf16>) {
      for (int64_t m = 0; m < logits.dim(0); ++m)
        to.data<int32_t>()[m] = draw(logits.data<T>() + m * logits.pitch(), logits.dim(1),
                                     static_cast<uint64_t>(index.data<int32_t>()[m]), draws);
    } else {
      throw Error(Exit::internal, "sample: logits in bf16");
    }
  });
}

void increment(const Tensor& x, const Tensor& y) {
  for (int64_t i = 0; i < x.numel(); ++i) ++x.data<int32_t>()[i], ++y.data<int32_t>()[i];
}

}  // namespace weft::cpu
