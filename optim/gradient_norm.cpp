#include "optim/gradient_norm.h"

#include <cmath>

namespace weft {

GradientNorm gradient_norm(const ParameterStore& store) {
  const double value = std::sqrt(squared_gradient_norm(store, whole(store)));
  return {value, std::isfinite(value) ? "" : first_non_finite_gradient(store)};
}

double squared_gradient_norm(const ParameterStore& store, const Ranges& ranges) {
  double sum = 0;
  for (const Range& r : ranges)
    sum += sum_of_squares(store.groups()[static_cast<size_t>(r.group)].gradient.rows(r.begin, r.end));
  return sum;
}

std::string first_non_finite_gradient(const ParameterStore& store) {
  for (const auto& entry : store.entries())
    if (entry->gradient.defined() &&
        !std::isfinite(sum_of_squares(entry->gradient.reshape({entry->gradient.numel()}))))
      return entry->info.name;
  return {};
}

double sum_of_squares(const Tensor& x) {
  if (x.device() == Device::meta) return 0;
  const Tensor sum = zeros({1}, Dtype::f64, x.device());
  ON_DEVICE(x.device(), sum_of_squares(sum, x));
  return to_values(sum)[0];
}

}  // namespace weft
