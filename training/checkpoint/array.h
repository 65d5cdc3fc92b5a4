#pragma once
// Arrays as the file formats see them: a name, an element type, a shape, and row-major host memory.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "autograd/dtype.h"

namespace weft {

inline int64_t count_of(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t dim : shape) count *= dim;
  return count;
}

// An array that somebody else owns.
struct NamedArray {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<int64_t> shape;  // {} is a scalar
  const void* data = nullptr;

  int64_t count() const { return count_of(shape); }
  int64_t bytes() const { return count() * size_of(dtype); }
};

// An array that was read from a file.
struct OwnedArray {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<int64_t> shape;
  std::unique_ptr<std::byte[]> data;

  OwnedArray(std::string name, Dtype dtype, std::vector<int64_t> shape)
      : name(std::move(name)),
        dtype(dtype),
        shape(std::move(shape)),
        data(std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(bytes()))) {}

  int64_t count() const { return count_of(shape); }
  int64_t bytes() const { return count() * size_of(dtype); }
  NamedArray view() const { return {name, dtype, shape, data.get()}; }

  template <class T>
  T* as() const {
    CHECK(dtype == dtype_of<T>(), name, ": read as another element type than it has");
    return reinterpret_cast<T*>(data.get());
  }
};

// Elements [begin, begin + count) of the flattened array `name`: what one rank holds of it.
struct ArrayPiece {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<int64_t> shape;  // of the whole array
  int64_t begin = 0;
  int64_t count = 0;
  const void* data = nullptr;

  ArrayPiece(std::string name, Dtype dtype, std::vector<int64_t> shape, int64_t begin, int64_t count,
             const void* data)
      : name(std::move(name)),
        dtype(dtype),
        shape(std::move(shape)),
        begin(begin),
        count(count),
        data(data) {}
  ArrayPiece(const NamedArray& whole)  // NOLINT: a whole array is a piece of itself
      : ArrayPiece(whole.name, whole.dtype, whole.shape, 0, whole.count(), whole.data) {}

  int64_t bytes() const { return count * size_of(dtype); }
  bool whole() const { return begin == 0 && count == count_of(shape); }
};

}  // namespace weft
