#pragma once
// Arithmetic whose accuracy is that of what it is rounded to, and moves between bf16 and f32 by pairs.

#include "autograd/cuda/rows.cuh"
#include "autograd/ops/vector_math.h"

namespace weft::cuda {

__device__ inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

constexpr float kLog2E = 1.44269504f;

// e^(x - shift) for what ends in numbers of type T: of bf16 by the GPU's own instruction, whose relative
// error of 2^-22, and 2^-24 a unit of x, the rounding hides.
template <class T>
struct Exponential {
  Acc<T> shift;
  __device__ Acc<T> operator()(Acc<T> x) const { return vector_math::exp(x - shift); }
};
template <>
struct Exponential<bf16> {
  float shift;  // times log2 e
  __device__ explicit Exponential(float m) : shift(m * kLog2E) {}
  __device__ float operator()(float x) const { return power_of_two(x * kLog2E - shift); }
};

template <class T>
__device__ Acc<T> sigmoid_for(Acc<T> x) {
  if constexpr (std::is_same_v<T, bf16>)
    return __fdividef(1.0f, 1.0f + power_of_two(-kLog2E * x));
  else
    return vector_math::sigmoid(x);
}

// x in its accumulator type, and back.
template <class T, int V>
__device__ Vector<Acc<T>, V> widen(const Vector<T, V>& x) {
  Vector<Acc<T>, V> y;
  if constexpr (std::is_same_v<T, bf16> && V % 2 == 0) {
#pragma unroll
    for (int i = 0; i < V / 2; ++i) {
      const uint32_t pair = reinterpret_cast<const uint32_t*>(x.v)[i];
      y.v[2 * i] = __uint_as_float(pair << 16);
      y.v[2 * i + 1] = __uint_as_float(pair & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int e = 0; e < V; ++e) y.v[e] = Acc<T>(x.v[e]);
  }
  return y;
}
template <class T, int V>
__device__ Vector<T, V> narrow(const Vector<Acc<T>, V>& x) {
  Vector<T, V> y;
  if constexpr (std::is_same_v<T, bf16> && V % 2 == 0) {
#pragma unroll
    for (int i = 0; i < V / 2; ++i)
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;"
          : "=r"(reinterpret_cast<uint32_t*>(y.v)[i])
          : "f"(x.v[2 * i + 1]), "f"(x.v[2 * i]));
  } else {
#pragma unroll
    for (int e = 0; e < V; ++e) y.v[e] = static_cast<T>(x.v[e]);
  }
  return y;
}

}  // namespace weft::cuda
