#include <algorithm>

#include "autograd/cuda/kernel.cuh"
#include "autograd/ops/convert.h"

namespace weft::cuda {
namespace {

template <class T>
void fill_as(const Tensor& to, T value) {
  T* y = data<T>(to);
  each(to.numel(), [=] __device__(int64_t i) { y[i] = value; });
}

// to = from where `sum` is false, to += from in to's accumulator type where it is true.
template <bool sum, class To, class From>
__device__ void move_one(To& to, From from) {
  const auto value = static_cast<Acc<From>>(from);
  if constexpr (sum)
    to = static_cast<To>(static_cast<Acc<To>>(to) + static_cast<Acc<To>>(value));
  else
    to = static_cast<To>(value);
}

template <class T, int N>
struct alignas(N * sizeof(T)) Several {
  T v[N];
};

template <class To, class From, bool sum>
void move(const Tensor& to, const Tensor& from) {
  To* y = data<To>(to);
  const From* x = data<From>(from);
  const int64_t n = to.numel();
  if (to.dense() && from.dense()) {
    constexpr int at_once = 16 / std::max(sizeof(To), sizeof(From));
    const int64_t groups = aligned(y) && aligned(x) ? n / at_once : 0;
    each(groups, [=] __device__(int64_t i) {
      const auto in = reinterpret_cast<const Several<From, at_once>*>(x)[i];
      auto* place = reinterpret_cast<Several<To, at_once>*>(y) + i;
      Several<To, at_once> out{};
      if constexpr (sum) out = *place;
#pragma unroll
      for (int j = 0; j < at_once; ++j) move_one<sum>(out.v[j], in.v[j]);
      *place = out;
    });
    const int64_t rest = groups * at_once;
    return each(n - rest, [=] __device__(int64_t i) { move_one<sum>(y[rest + i], x[rest + i]); });
  }
  const int64_t width = to.row_size(), to_pitch = to.pitch(), from_pitch = from.pitch();
  each(n, [=] __device__(int64_t i) {
    int64_t column = i;
    const int64_t row = divide(column, width);
    move_one<sum>(y[row * to_pitch + column], x[row * from_pitch + column]);
  });
}

template <bool sum>
void move_any(const Tensor& to, const Tensor& from) {
  with_float(to.dtype(), [&]<class To>() {
    with_float(from.dtype(), [&]<class From>() { move<To, From, sum>(to, from); });
  });
}

}  // namespace

void fill(const Tensor& to, double value) {
  if (to.dtype() == Dtype::i32) return fill_as(to, static_cast<int32_t>(value));
  with_float(to.dtype(), [&]<class T>() { fill_as(to, static_cast<T>(static_cast<Acc<T>>(value))); });
}

void convert(const Tensor& to, const Tensor& from) {
  if (to.numel() == 0) return;
  if (to.dtype() == from.dtype()) return copy(to, from);
  CHECK(is_float(to.dtype()) && is_float(from.dtype()), "copy: i32 and a float type do not mix");
  move_any<false>(to, from);
}

void accumulate(const Tensor& to, const Tensor& from) {
  CHECK(to.shape() == from.shape(), "accumulate: ", from.shape(), " into ", to.shape());
  if (to.numel() > 0) move_any<true>(to, from);
}

}  // namespace weft::cuda
