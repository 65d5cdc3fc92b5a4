#pragma once
// exp, sigmoid and tanh that a compiler turns into vector instructions: no branch, no call. The f32 forms are
// within 2 ulp of the exact value over the whole range (tested); double uses the library. exp is always
// inlined and calls no other inline function: files compiled for more than one instruction set use it.

#include <cmath>
#include <cstdint>

#include "autograd/dtype.h"

namespace weft::vector_math {

WEFT_HOST_DEVICE __attribute__((always_inline)) inline double exp(double x) { return ::exp(x); }

WEFT_HOST_DEVICE __attribute__((always_inline)) inline float exp(float x) {
#ifdef __CUDA_ARCH__
  return ::expf(x);
#else
  // e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2; ln 2 in two parts keeps r exact. NaN passes
  // through.
  const float clamped = x > 89.0f ? 89.0f : (x < -105.0f ? -105.0f : x);
  const float shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer ends in the low bits
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n in two factors, so that results below 2^-126 round once into the subnormals and n = 128 does not
  // overflow.
  const int32_t whole = static_cast<int32_t>(__builtin_bit_cast(uint32_t, shifted)) - 0x4b400000;
  const int32_t half = whole >> 1;
  const float a = __builtin_bit_cast(float, (half + 127) << 23);
  const float b = __builtin_bit_cast(float, (whole - half + 127) << 23);
  return p * a * b;  // infinity from x = 88.73 on, by overflow
#endif
}

template <class T>
WEFT_HOST_DEVICE inline T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}

WEFT_HOST_DEVICE inline double tanh(double x) { return std::tanh(x); }
WEFT_HOST_DEVICE inline float tanh(float x) {
  // Near zero the quotient cancels: a rational-free odd series takes over below 0.1.
  const float magnitude = x < 0 ? -x : x;
  const float e = exp(-2.0f * magnitude);
  const float large = (1.0f - e) / (1.0f + e);
  const float s = magnitude * magnitude;
  const float small = magnitude * (1.0f + s * (-0.33333334f + s * (0.13333334f + s * -0.05396825f)));
  const float y = magnitude < 0.1f ? small : large;
  return x < 0 ? -y : y;
}

}  // namespace weft::vector_math
