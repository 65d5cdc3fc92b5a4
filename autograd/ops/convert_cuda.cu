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
template <class To, class From, bool sum>
void move(const Tensor& to, const Tensor& from) {
  To* y = data<To>(to);
  const From* x = data<From>(from);
  if (to.dense() && from.dense() && sizeof(To) == sizeof(From)) {
    if constexpr (sizeof(To) == sizeof(From)) {
      if constexpr (sum)
        map(
            to.numel(), y, [] __device__(Acc<To> a, Acc<From> b) { return a + Acc<To>(b); },
            static_cast<const To*>(y), x);
      else
        map(
            to.numel(), y, [] __device__(Acc<From> b) { return b; }, x);
    }
    return;
  }
  const int64_t width = to.row_size(), to_pitch = to.pitch(), from_pitch = from.pitch();
  each(to.numel(), [=] __device__(int64_t i) {
    const int64_t row = i / width, column = i - row * width;
    const auto value = static_cast<Acc<From>>(x[row * from_pitch + column]);
    To& target = y[row * to_pitch + column];
    if constexpr (sum)
      target = static_cast<To>(static_cast<Acc<To>>(target) + static_cast<Acc<To>>(value));
    else
      target = static_cast<To>(value);
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
