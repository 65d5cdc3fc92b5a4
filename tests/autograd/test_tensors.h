#pragma once
// What tests of tensors share: the largest difference, bitwise equality, and elements to write. Tensors are
// made on the default device, so that WEFT_DEVICE=cuda runs the same tests on a GPU.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "autograd/gradcheck.h"
#include "tests/few.h"
#include "tests/tolerances.h"

namespace weft {

// Largest |a - b| / (1 + |b|); infinity where exactly one is not finite.
inline double difference(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.shape(), b.shape());
  if (!(a.shape() == b.shape())) return INFINITY;
  const std::vector<double> x = to_values(a), y = to_values(b);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double d = std::abs(x[i] - y[i]) / (1 + std::abs(y[i]));
    if (!(d <= worst)) worst = std::isnan(d) ? INFINITY : d;
  }
  return worst;
}

// The norm of a - b over that of b: for sums of many terms, which may cancel in one element. Infinities must
// agree.
inline double norm_difference(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.shape(), b.shape());
  if (!(a.shape() == b.shape())) return INFINITY;
  const std::vector<double> x = to_values(a), y = to_values(b);
  double apart = 0, all = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (x[i] == y[i] && std::isinf(x[i])) continue;
    apart += (x[i] - y[i]) * (x[i] - y[i]);
    all += y[i] * y[i];
  }
  return apart == 0 ? 0 : std::sqrt(apart / all);
}

// The smaller of both: an element may be what is left of a sum whose terms cancel, and so may all of them.
inline double least_difference(const Tensor& a, const Tensor& b) {
  return std::min(difference(a, b), norm_difference(a, b));
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  if (!(a.shape() == b.shape()) || a.dtype() != b.dtype()) return false;
  const Tensor x = a.contiguous().to(Device::cpu), y = b.contiguous().to(Device::cpu);
  return x.numel() == 0 || std::memcmp(x.raw(), y.raw(), static_cast<size_t>(x.bytes())) == 0;
}

// f gets the elements of x, wherever they live, to change them.
template <class T, class F>
void edit(const Tensor& x, F f) {
  const Tensor host = x.to(Device::cpu);
  f(host.data<T>());
  if (x.device() != Device::cpu) x.copy_from(host);
}

inline void expect_gradients(const Function& f, const std::vector<Tensor>& inputs,
                             ParameterStore* store = nullptr) {
  const GradcheckResult r = gradcheck(f, inputs, store, differences(24));
  EXPECT_LE(r.error, tolerance::kGradcheck) << r.worst;
}

}  // namespace weft
