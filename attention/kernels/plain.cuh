#pragma once
// What the token-by-token kernels share: a block of 256 threads has 32 columns of a state, 8 threads a
// column.

#include <cuda_bf16.h>

#include "attention/kernels/linear_attention.h"

namespace weft::cuda {

constexpr int lanes = 8;  // threads that share a column of the state, each with rows lane, lane + 8, ...
constexpr int most_rows = 256 / lanes;

template <class T>
__device__ float value(const Rows& rows, int64_t token, int64_t column) {
  return static_cast<float>(static_cast<const T*>(rows.data)[token * rows.pitch + column]);
}

}  // namespace weft::cuda
