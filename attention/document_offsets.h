#pragma once
// Where documents begin on a line of tokens that is on the GPU.

#include <vector>

#include "autograd/tensor.h"

namespace weft::cuda {

struct DocumentOffsets {
  Tensor lengths;  // (documents) i32
  // (sizes, at least documents + 1) i32: for rows of each size, the elements before a document. Rows of this
  // tensor begin at multiples of 16 bytes.
  Tensor offsets;
};

// position: (N) i32, 0 where a document begins. Documents beyond those that are there have no token.
DocumentOffsets document_offsets(const Tensor& position, int64_t documents,
                                 const std::vector<int64_t>& sizes);

}  // namespace weft::cuda
