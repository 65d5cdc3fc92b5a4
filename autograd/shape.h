#pragma once
// The extents of a tensor: up to six, row-major, 64-bit.

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "autograd/check.h"

namespace weft {

class Shape {
 public:
  static constexpr int kMaxRank = 6;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) {
    for (int64_t d : dims) push_back(d);
  }
  template <class Iterator>
  Shape(Iterator begin, Iterator end) {
    for (; begin != end; ++begin) push_back(*begin);
  }

  int rank() const { return rank_; }
  // Negative axes count from the end.
  int64_t operator[](int axis) const { return dims_[index(axis)]; }
  int64_t& operator[](int axis) { return dims_[index(axis)]; }
  const int64_t* begin() const { return dims_.data(); }
  const int64_t* end() const { return dims_.data() + rank_; }

  int64_t numel() const { return product(0, rank_); }
  // Product of the extents [first, last).
  int64_t product(int first, int last) const {
    int64_t n = 1;
    for (int i = first; i < last; ++i) n *= dims_[i];
    return n;
  }
  void push_back(int64_t extent) {
    CHECK(rank_ < kMaxRank, "shape: more than ", kMaxRank, " dimensions");
    CHECK(extent >= 0, "shape: negative extent ", extent);
    dims_[rank_++] = extent;
  }
  // This shape with extent in place of the one at axis.
  Shape with(int axis, int64_t extent) const {
    Shape s = *this;
    s[axis] = extent;
    return s;
  }
  int index(int axis) const {
    const int i = axis < 0 ? axis + rank_ : axis;
    CHECK(i >= 0 && i < rank_, "shape: axis ", axis, " of ", rank_, " dimensions");
    return i;
  }
  bool operator==(const Shape& other) const {
    if (rank_ != other.rank_) return false;
    for (int i = 0; i < rank_; ++i)
      if (dims_[i] != other.dims_[i]) return false;
    return true;
  }

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

// "(3, 4)"
std::ostream& operator<<(std::ostream& out, const Shape& shape);

}  // namespace weft
