#include "autograd/cuda/copy_rows.h"

#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {
namespace {

// Rows of `width` units each.
template <class Unit>
void copy_units(const Tensor& to, const Tensor& from) {
  const auto units = [](const Tensor& x, int64_t elements) {
    return elements * size_of(x.dtype()) / static_cast<int64_t>(sizeof(Unit));
  };
  auto* y = static_cast<Unit*>(to.raw());
  const auto* x = static_cast<const Unit*>(from.raw());
  const int64_t width = units(to, to.row_size()), to_pitch = units(to, to.pitch()),
                from_pitch = units(from, from.pitch());
  each(to.dim(0) * width, [=] __device__(int64_t i) {
    int64_t column = i;
    const int64_t row = divide(column, width);
    y[row * to_pitch + column] = x[row * from_pitch + column];
  });
}

}  // namespace

void copy_rows(const Tensor& to, const Tensor& from) {
  const int64_t item = size_of(to.dtype());
  const bool whole = aligned(to.raw()) && aligned(from.raw()) && to.row_size() * item % 16 == 0 &&
                     to.pitch() * item % 16 == 0 && from.pitch() * item % 16 == 0;
  if (whole) return copy_units<uint4>(to, from);
  if (item == 2) return copy_units<uint16_t>(to, from);
  item == 4 ? copy_units<uint32_t>(to, from) : copy_units<uint64_t>(to, from);
}

}  // namespace weft::cuda
