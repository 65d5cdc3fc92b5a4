#include "autograd/tensor.h"

#include <cstring>

#include "autograd/ops/convert.h"
#include "autograd/scratch.h"
#ifdef WEFT_CUDA
#include "autograd/cuda/runtime.h"
#endif

namespace weft {

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '(';
  for (int i = 0; i < shape.rank(); ++i) out << (i ? ", " : "") << shape[i];
  return out << ')';
}

Tensor::Tensor(const Shape& shape, Dtype dtype, Device device)
    : buffer_(
          std::allocate_shared<Buffer>(ScratchAllocator<Buffer>(), device, shape.numel() * size_of(dtype))),
      shape_(shape),
      dtype_(dtype) {
  pitch_ = row_size();
}

Tensor Tensor::reshape(const Shape& shape) const {
  CHECK(shape.numel() == numel(), "reshape: ", shape_, " to ", shape);
  Tensor view = *this;
  view.shape_ = shape;
  if (dense()) {
    view.pitch_ = view.row_size();
  } else {
    CHECK(shape.rank() > 0 && shape[0] == dim(0), "reshape: a column view keeps its rows, ", shape_, " to ",
          shape);
  }
  return view;
}

Tensor Tensor::rows(int64_t begin, int64_t end) const {
  CHECK(0 <= begin && begin <= end && end <= dim(0), "rows: [", begin, ", ", end, ") of ", shape_);
  Tensor view = *this;
  view.offset_ += begin * pitch_;
  view.shape_[0] = end - begin;
  return view;
}

Tensor Tensor::columns(int64_t begin, int64_t end) const {
  CHECK(rank() == 2 && 0 <= begin && begin <= end && end <= dim(1), "columns: [", begin, ", ", end, ") of ",
        shape_);
  Tensor view = *this;
  view.offset_ += begin;
  view.shape_[1] = end - begin;
  return view;
}

Tensor Tensor::repeated(int64_t count) const {
  CHECK(rank() > 0 && dim(0) > 0 && count >= 0, "repeated: ", count, " times the first row of ", shape_);
  Tensor view = *this;
  view.shape_[0] = count;
  view.pitch_ = 0;
  return view;
}

Tensor Tensor::contiguous() const {
  if (dense()) return *this;
  Tensor copy(shape_, dtype_, device());
  copy.copy_from(*this);
  return copy;
}

Tensor Tensor::to(Dtype dtype) const {
  if (dtype == dtype_) return *this;
  Tensor copy(shape_, dtype, device());
  copy.copy_from(*this);
  return copy;
}

Tensor Tensor::to(Device device) const {
  if (device == this->device()) return *this;
  Tensor copy(shape_, dtype_, device);
  copy.copy_from(*this);
  return copy;
}

void Tensor::copy_from(const Tensor& source) const {
  CHECK(source.shape() == shape_, "copy: ", source.shape(), " into ", shape_);
  if (device() == Device::meta || source.device() == Device::meta) return;
  if (source.device() == device()) {
    ON_DEVICE(device(), convert(*this, source));
  } else {
#ifdef WEFT_CUDA
    cuda::copy(*this, source.to(dtype_));
#endif
  }
}

void Tensor::zero() const {
  if (device() == Device::meta || numel() == 0) return;
  const int64_t row_bytes = row_size() * size_of(dtype_);
  Allocator& allocator = allocator_of(device());
  if (dense()) return allocator.fill(raw(), 0, bytes());
  for (int64_t i = 0; i < dim(0); ++i) allocator.fill(rows(i, i + 1).raw(), 0, row_bytes);
}

Tensor empty(const Shape& shape, Dtype dtype, Device device) { return Tensor(shape, dtype, device); }

Tensor zeros(const Shape& shape, Dtype dtype, Device device) {
  Tensor t(shape, dtype, device);
  t.zero();
  return t;
}

Tensor full(const Shape& shape, double value, Dtype dtype, Device device) {
  Tensor t(shape, dtype, device);
  ON_DEVICE(device, fill(t, value));
  return t;
}

Tensor empty_like(const Tensor& x) { return Tensor(x.shape(), x.dtype(), x.device()); }
Tensor zeros_like(const Tensor& x) { return zeros(x.shape(), x.dtype(), x.device()); }

Tensor from_values(const Shape& shape, Dtype dtype, const std::vector<double>& values, Device device) {
  CHECK(shape.numel() == static_cast<int64_t>(values.size()), "from_values: ", values.size(), " for ", shape);
  Tensor t(shape, dtype, Device::cpu);
  with_float(dtype, [&]<class T>() {
    T* p = t.data<T>();
    for (size_t i = 0; i < values.size(); ++i) p[i] = static_cast<T>(values[i]);
  });
  return t.to(device);
}

Tensor from_ints(const std::vector<int32_t>& values, Device device) {
  Tensor t({static_cast<int64_t>(values.size())}, Dtype::i32, Device::cpu);
  if (!values.empty()) std::memcpy(t.raw(), values.data(), values.size() * sizeof(int32_t));
  return t.to(device);
}

std::vector<double> to_values(const Tensor& x) {
  const Tensor dense = x.contiguous().to(Device::cpu);
  std::vector<double> values(static_cast<size_t>(x.numel()));
  if (x.dtype() == Dtype::i32) {
    for (size_t i = 0; i < values.size(); ++i) values[i] = dense.data<int32_t>()[i];
  } else {
    with_float(x.dtype(), [&]<class T>() {
      for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(dense.data<T>()[i]);
    });
  }
  return values;
}

}  // namespace weft
