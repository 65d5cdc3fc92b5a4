#pragma once
// Box-Muller (1958) from one draw, with the same bits on every processor: logarithm and cosine are written
// out in roundings that IEEE 754 defines. Wherever a product meets a sum it is one fma, so that no compiler
// can choose.

#include <bit>
#include <cmath>

#include "autograd/philox.h"

namespace weft {

// Natural logarithm of x > 0, normal; within 2 ulp. With x = m 2^e, m in [sqrt(1/2), sqrt(2)), and
// s = (m - 1) / (m + 1):  ln x = e ln 2 + 2 (s + s^3 / 3 + s^5 / 5 + ...).
WEFT_HOST_DEVICE inline double portable_log(double x) {
  constexpr double kLn2 = 0x1.62e42fefa39efp-1, kLn2Rest = 0x1.abc9e3b39803fp-56;
  constexpr int kTerms = 11;  // s^2 <= 0.0295
  const auto bits = std::bit_cast<uint64_t>(x);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0xfffffffffffffull) | 0x3ff0000000000000ull);
  if (m > 0x1.6a09e667f3bcdp+0) {
    m *= 0.5;
    ++exponent;
  }
  const double s = (m - 1) / (m + 1), square = s * s;
  double tail = 1.0 / (2 * kTerms + 1);
  for (int k = kTerms - 1; k >= 1; --k) tail = std::fma(tail, square, 1.0 / (2 * k + 1));
  const double of_m = 2 * std::fma(s * square, tail, s);
  const auto e = static_cast<double>(exponent);
  return std::fma(e, kLn2, std::fma(e, kLn2Rest, of_m));
}

// cos(2 pi turns / 2^32); symmetries are taken on the integer.
WEFT_HOST_DEVICE inline double portable_cosine(uint32_t turns) {
  constexpr uint32_t kQuarter = 1u << 30;
  constexpr double kStep = 0x1.921fb54442d18p+0 * 0x1p-30;  // of a quarter turn
  const uint32_t quadrant = turns >> 30;
  uint32_t place = turns & (kQuarter - 1);
  bool sine = (quadrant & 1) != 0;
  const bool negative = quadrant == 1 || quadrant == 2;
  if (place > kQuarter / 2) {  // the other function, from the other side
    place = kQuarter - place;
    sine = !sine;
  }
  const double x = static_cast<double>(place) * kStep, square = x * x;  // x <= pi / 4
  constexpr int kTerms = 9;
  // 1 - x^2 / 2 + x^4 / 24 - ..., or x times 1 - x^2 / 6 + x^4 / 120 - ...
  double sum = 1;
  for (int k = kTerms; k >= 1; --k) {
    const double factor = sine ? 1.0 / (2 * k * (2 * k + 1)) : 1.0 / (2 * k * (2 * k - 1));
    sum = std::fma(sum, -square * factor, 1.0);
  }
  const double value = sine ? x * sum : sum;
  return negative ? -value : value;
}

WEFT_HOST_DEVICE inline double normal_of(const PhiloxBlock& draw) {
  const double u = (static_cast<double>(draw[0]) + 1.0) * 0x1p-32;
  return std::sqrt(-2 * portable_log(u)) * portable_cosine(draw[1]);
}

}  // namespace weft
