#include "training/tasks/task.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "autograd/check.h"

namespace weft {

uint32_t Draws::bits() {
  if (drawn_ % 4 == 0) block_ = key_.draw(example_, drawn_ / 4);
  return block_[drawn_++ % 4];
}

int64_t Draws::below(int64_t n) {
  CHECK(n >= 1 && n < (int64_t{1} << 31), "Draws::below: ", n);
  return static_cast<int64_t>(uint64_t{bits()} * static_cast<uint64_t>(n) >> 32);
}

double Draws::uniform() { return (static_cast<double>(bits()) + 1.0) * 0x1p-32; }

std::vector<int64_t> Draws::choose(int64_t k, int64_t n) {
  CHECK(0 <= k && k <= n, "Draws::choose: ", k, " of ", n);
  std::vector<int64_t> all(static_cast<size_t>(n));
  std::iota(all.begin(), all.end(), 0);
  for (int64_t i = 0; i < k; ++i) std::swap(all[i], all[i + below(n - i)]);
  all.resize(static_cast<size_t>(k));
  return all;
}

// The k that happen first, where each happens after an exponential time of rate `weight`: the order in which
// they do is that of drawing without putting back (Efraimidis and Spirakis, 2006).
std::vector<int64_t> Draws::choose(int64_t k, const std::vector<double>& weights) {
  CHECK(0 <= k && k <= static_cast<int64_t>(weights.size()), "Draws::choose: ", k, " of ", weights.size());
  std::vector<std::pair<double, int64_t>> times;
  for (size_t i = 0; i < weights.size(); ++i)
    times.emplace_back(-std::log(uniform()) / weights[i], static_cast<int64_t>(i));
  std::partial_sort(times.begin(), times.begin() + k, times.end());
  std::vector<int64_t> chosen;
  for (int64_t i = 0; i < k; ++i) chosen.push_back(times[i].second);
  return chosen;
}

}  // namespace weft
