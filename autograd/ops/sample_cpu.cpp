#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "autograd/ops/sample.h"
#include "autograd/philox.h"

namespace weft::cpu {
namespace {

// The fewest from the largest down that have the share `top_p` of the weight `total`, which becomes theirs.
template <class Before>
void keep_top_p(std::vector<int32_t>& order, const std::vector<double>& weight, double top_p, double& total,
                Before before) {
  // All that weigh less than this have together less than may be missing, so they need no order.
  const double least = (1 - top_p) * total / static_cast<double>(order.size());
  order.erase(std::remove_if(order.begin(), order.end(), [&](int32_t i) { return weight[i] < least; }),
              order.end());
  std::sort(order.begin(), order.end(), before);
  double reached = 0;
  size_t kept = 0;
  while (kept < order.size() && reached < top_p * total) reached += weight[order[kept++]];
  order.resize(kept);
  total = reached;
}

template <class T>
int32_t draw(const T* z, int64_t n, uint64_t index, const DrawOptions& draws) {
  if (draws.temperature == 0) return static_cast<int32_t>(std::max_element(z, z + n) - z);
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  const auto before = [&](int32_t a, int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); };
  if (draws.top_k > 0 && draws.top_k < n) {
    std::partial_sort(order.begin(), order.begin() + draws.top_k, order.end(), before);
    order.resize(static_cast<size_t>(draws.top_k));
  }
  double top = -INFINITY, total = 0;
  for (const int32_t i : order) top = std::max(top, static_cast<double>(z[i]));
  std::vector<double> weight(static_cast<size_t>(n));
  for (const int32_t i : order)
    total += weight[i] = std::exp((static_cast<double>(z[i]) - top) / draws.temperature);
  // A NaN makes the total one, and has no place in an order.
  if (draws.top_p < 1 && total > 0) keep_top_p(order, weight, draws.top_p, total, before);
  double left = total * RandomKey{draws.seed, draws.stream, 0}.uniform(index);
  for (const int32_t i : order)
    if ((left -= weight[i]) <= 0) return i;
  return order.back();
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
