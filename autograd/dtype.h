#pragma once
// Element types. No fp16: bf16 has the range of f32, so nothing needs a loss scale.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "autograd/check.h"

#ifdef __CUDACC__
#define WEFT_HOST_DEVICE __host__ __device__
#else
#define WEFT_HOST_DEVICE
#endif

namespace weft {

enum class Dtype : uint8_t { f64, f32, bf16, i32 };

// The upper half of an f32, rounded to nearest even. Storage only: arithmetic happens in f32.
struct bf16 {
  uint16_t bits = 0;

  bf16() = default;
  WEFT_HOST_DEVICE bf16(float value) {  // NOLINT: implicit by intent, as from a literal
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = static_cast<uint16_t>(nan ? (u >> 16) | 0x40u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
#endif
  }
  WEFT_HOST_DEVICE operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

// The type in which sums over T are kept.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
constexpr Dtype dtype_of() {
  if constexpr (std::is_same_v<T, double>)
    return Dtype::f64;
  else if constexpr (std::is_same_v<T, float>)
    return Dtype::f32;
  else if constexpr (std::is_same_v<T, bf16>)
    return Dtype::bf16;
  else {
    static_assert(std::is_same_v<T, int32_t>, "not an element type");
    return Dtype::i32;
  }
}

constexpr int64_t size_of(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::bf16 ? 2 : 4; }
// In which sums over it are kept, as Acc.
constexpr Dtype wide_of(Dtype dtype) { return dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32; }
constexpr bool is_float(Dtype dtype) { return dtype != Dtype::i32; }
const char* name_of(Dtype dtype);

// Calls f.operator()<T>() with the C++ type of a floating dtype.
template <class F>
decltype(auto) with_float(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f64: return f.template operator()<double>();
    case Dtype::f32: return f.template operator()<float>();
    case Dtype::bf16: return f.template operator()<bf16>();
    case Dtype::i32: break;
  }
  throw Error(Exit::internal, "a floating-point tensor is needed, got i32");
}

// The same where all is in the type of sums.
template <class F>
decltype(auto) with_wide(Dtype dtype, F&& f) {
  CHECK(dtype == wide_of(dtype), "a tensor of f32 or f64 is needed, got ", name_of(dtype));
  if (dtype == Dtype::f64) return f.template operator()<double>();
  return f.template operator()<float>();
}

}  // namespace weft
