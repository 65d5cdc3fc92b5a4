#pragma once
// Which entries of an index name each row, so that a scatter can sum them in order without atomics.

#include "autograd/tensor.h"

namespace weft::cuda {

struct Buckets {
  Tensor start;  // (rows + 1) i32: of row r, order[start[r]] ... order[start[r + 1] - 1]
  Tensor order;  // (M) i32, ascending within a row
};

// index (M) i32 with values in [-1, rows); -1 belongs to no row.
Buckets buckets_of(const Tensor& index, int64_t rows);

}  // namespace weft::cuda
