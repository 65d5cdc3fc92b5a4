#include "autograd/philox.h"

#include "autograd/normal.h"

namespace weft {

double RandomKey::normal(uint64_t index, uint32_t channel) const { return normal_of(draw(index, channel)); }

const char* name_of(Dtype dtype) {
  constexpr const char* names[] = {"f64", "f32", "bf16", "i32"};
  return names[static_cast<int>(dtype)];
}

}  // namespace weft
