#pragma once
// The bounds for which kernels are launched: the number of documents, and the length of the longest. Training
// steps on a GPU round both up, so that steps over other documents are the same work; kernels find the actual
// documents on the device.

#include "autograd/layout.h"

namespace weft {

struct DocumentBounds {
  int32_t documents = 0;
  int64_t longest = 0;
};

// Equal documents as they are; others rounded up to powers of two, so that many ways to pack have one bound.
DocumentBounds rounded_bounds(const Segments& segments);

// While it lives, on this thread, what is launched for this layout, known by where its positions lie, is
// launched for these bounds.
class BoundsScope {
 public:
  // offsets (documents + 1) i32: where each document begins, and then the end of the last. Documents that
  // only the bound allows for have no tokens.
  BoundsScope(const Layout& layout, const DocumentBounds& bounds, const Tensor& offsets);
  ~BoundsScope();
  BoundsScope(const BoundsScope&) = delete;
  BoundsScope& operator=(const BoundsScope&) = delete;

 private:
  friend DocumentBounds bounds_of(const Layout& layout);
  friend Tensor offsets_of(const Layout& layout);
  static const BoundsScope* of(const Layout& layout);
  Tensor position_;
  DocumentBounds bounds_;
  Tensor offsets_;
  const BoundsScope* previous_;
};

// Those of the scope; for any other layout exactly what its segments say.
DocumentBounds bounds_of(const Layout& layout);
// Of the scope; else undefined.
Tensor offsets_of(const Layout& layout);

}  // namespace weft
