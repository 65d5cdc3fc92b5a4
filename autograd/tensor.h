#pragma once
// A tensor: row-major, shared storage, and one optional pitch. The pitch is the distance, in elements,
// between successive rows of the leading dimension; everything after the leading dimension is contiguous. A
// view cuts the leading dimension or takes a range of columns, so packed projections are one product and
// several views. A pitch of 0 is one row that stands for all.

#include <memory>
#include <vector>

#include "autograd/dtype.h"
#include "autograd/memory.h"
#include "autograd/shape.h"

namespace weft {

class Tensor {
 public:
  Tensor() = default;  // undefined
  Tensor(const Shape& shape, Dtype dtype, Device device);

  bool defined() const { return buffer_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  int64_t dim(int axis) const { return shape_[axis]; }
  int64_t numel() const { return shape_.numel(); }
  Dtype dtype() const { return dtype_; }
  Device device() const { return buffer_->device(); }
  int64_t bytes() const { return numel() * size_of(dtype_); }

  // Elements from one leading row to the next, and in one leading row.
  int64_t pitch() const { return pitch_; }
  int64_t row_size() const { return shape_.product(1, rank()); }
  bool dense() const { return pitch_ == row_size() || dim(0) <= 1; }
  // Whether leading rows begin at multiples of `bytes`, up to the 64 at which buffers do. Meta tensors answer
  // as those with memory would.
  bool rows_at_multiples_of(int64_t bytes) const {
    return offset_ * size_of(dtype_) % bytes == 0 && pitch_ * size_of(dtype_) % bytes == 0;
  }

  // Elements for the host to read or write.
  template <class T>
  T* data() const {
    CHECK(device() != Device::cuda, "tensor: read by the host, lives on the GPU");
    CHECK(dtype_of<T>() == dtype_, "tensor: read as ", name_of(dtype_of<T>()), ", holds ", name_of(dtype_));
    return static_cast<T*>(raw());
  }
  void* raw() const {
    return buffer_ && buffer_->data() ? static_cast<char*>(buffer_->data()) + offset_ * size_of(dtype_)
                                      : nullptr;
  }

  // Views. The same elements in another shape; a pitched tensor keeps its leading extent.
  Tensor reshape(const Shape& shape) const;
  // Leading rows [begin, end).
  Tensor rows(int64_t begin, int64_t end) const;
  // Columns [begin, end) of an (N, C) tensor.
  Tensor columns(int64_t begin, int64_t end) const;
  // The first leading row `count` times, with a pitch of 0: to be read only.
  Tensor repeated(int64_t count) const;
  bool repeats() const { return pitch_ == 0 && row_size() > 0; }

  // Copies.
  Tensor contiguous() const;  // itself if dense
  Tensor to(Dtype dtype) const;
  Tensor to(Device device) const;              // itself if it is there
  void copy_from(const Tensor& source) const;  // same shape; converts between dtypes and devices
  void zero() const;

  // True when no other tensor shares the storage, so that writing in place cannot be seen elsewhere.
  bool unique() const { return buffer_.use_count() == 1; }
  const Buffer* buffer() const { return buffer_.get(); }

 private:
  std::shared_ptr<Buffer> buffer_;
  int64_t offset_ = 0;
  int64_t pitch_ = 0;
  Shape shape_;
  Dtype dtype_ = Dtype::f32;
};

Tensor empty(const Shape& shape, Dtype dtype, Device device = default_device());
Tensor zeros(const Shape& shape, Dtype dtype, Device device = default_device());
Tensor full(const Shape& shape, double value, Dtype dtype, Device device = default_device());
Tensor empty_like(const Tensor& x);
Tensor zeros_like(const Tensor& x);

// Tensors from values and back, for tests, tools and index lists.
Tensor from_values(const Shape& shape, Dtype dtype, const std::vector<double>& values,
                   Device device = default_device());
Tensor from_ints(const std::vector<int32_t>& values, Device device = default_device());
std::vector<double> to_values(const Tensor& x);

}  // namespace weft
