#include "autograd/philox.h"

#include <cmath>
#include <numbers>

namespace weft {

double RandomKey::normal(uint64_t index, uint32_t channel) const {
  const PhiloxBlock r = draw(index, channel);
  const double u = (static_cast<double>(r[0]) + 1.0) * 0x1p-32;
  const double angle = 2 * std::numbers::pi * static_cast<double>(r[1]) * 0x1p-32;
  return std::sqrt(-2 * std::log(u)) * std::cos(angle);
}

const char* name_of(Dtype dtype) {
  constexpr const char* names[] = {"f64", "f32", "bf16", "i32"};
  return names[static_cast<int>(dtype)];
}

}  // namespace weft
