#pragma once
// Random values where they are wanted: the same bits on every device and from any number of threads.

#include "autograd/normal.h"
#include "autograd/tensor.h"

namespace weft {

// How draws spread. normal: mean 0, deviation `scale`; uniform: [-scale, scale).
enum class Spread : uint8_t { normal, uniform };

// to[i] = the draw of index i, rounded to f32 on the way, so that an f64 tensor holds the same numbers. to:
// dense, of any float type.
void draw(const Tensor& to, Spread spread, double scale, const RandomKey& key);

WEFT_HOST_DEVICE inline float drawn(Spread spread, double scale, const RandomKey& key, uint64_t index) {
  const double value = spread == Spread::normal ? normal_of(key.draw(index)) : 2 * key.uniform(index) - 1;
  return static_cast<float>(scale * value);
}

namespace cpu {
void draw(const Tensor& to, Spread spread, double scale, const RandomKey& key);
}  // namespace cpu
namespace cuda {
void draw(const Tensor& to, Spread spread, double scale, const RandomKey& key);
}  // namespace cuda

}  // namespace weft
