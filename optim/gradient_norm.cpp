#include "optim/gradient_norm.h"

#include <cmath>
#include <numeric>

namespace weft {

GradientNorm gradient_norm(const ParameterStore& store) {
  const double value = std::sqrt(squared_gradient_norm(store, whole(store)));
  return {value, std::isfinite(value) ? "" : first_non_finite_gradient(store)};
}

double squared_gradient_norm(const ParameterStore& store, const Ranges& ranges) {
  if (store.device() == Device::meta || ranges.empty()) return 0;
  // All ranges before the one read, which waits for the device.
  const auto count = static_cast<int64_t>(ranges.size());
  const Tensor sums = empty({count}, Dtype::f64, store.device());
  for (int64_t i = 0; i < count; ++i) {
    const Range& r = ranges[static_cast<size_t>(i)];
    const Tensor gradient = store.groups()[static_cast<size_t>(r.group)].gradient.rows(r.begin, r.end);
    ON_DEVICE(store.device(), sum_of_squares(sums.rows(i, i + 1), gradient));
  }
  const std::vector<double> values = to_values(sums);
  return std::accumulate(values.begin(), values.end(), 0.0);
}

std::string first_non_finite_gradient(const ParameterStore& store) {
  for (const auto& entry : store.entries())
    if (entry->gradient.defined() &&
        !std::isfinite(sum_of_squares(entry->gradient.reshape({entry->gradient.numel()}))))
      return entry->info.name;
  return {};
}

std::string first_non_finite_weight(const ParameterStore& store) {
  for (const ParameterGroup& group : store.groups()) {
    if (std::isfinite(sum_of_squares(group.master))) continue;
    for (const auto& entry : store.entries())
      if (!std::isfinite(sum_of_squares(entry->master.reshape({entry->master.numel()}))))
        return entry->info.name;
  }
  return {};
}

double sum_of_squares(const Tensor& x) {
  if (x.device() == Device::meta) return 0;
  const Tensor sum = empty({1}, Dtype::f64, x.device());
  ON_DEVICE(x.device(), sum_of_squares(sum, x));
  return to_values(sum)[0];
}

}  // namespace weft
