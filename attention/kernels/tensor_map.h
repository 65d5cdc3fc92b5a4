#pragma once
// What TMA has to know of a tensor.

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "autograd/check.h"
#include "autograd/dtype.h"

namespace weft::cuda {

struct TensorBox {
  Dtype dtype = Dtype::bf16;  // or f32
  int columns = 64;
  bool swizzled = true;  // as tile.cuh wants it
};

// (tokens, heads, width) with a pitch between tokens, in boxes of some columns of one head of `rows` tokens.
// What lies beyond the tensor reads as zero. Data and pitch are aligned to 16 bytes, and so is a head.
inline CUtensorMap tensor_map(const void* data, int64_t pitch, int64_t width, int64_t heads, int64_t tokens,
                              int rows, TensorBox as = {}) {
  static const auto encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t status =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    CHECK(status == cudaSuccess && found == cudaDriverEntryPointSuccess,
          "the CUDA driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  CUtensorMap map;
  const cuuint64_t size[3] = {static_cast<cuuint64_t>(width), static_cast<cuuint64_t>(heads),
                              static_cast<cuuint64_t>(tokens)};
  const cuuint64_t bytes = as.dtype == Dtype::bf16 ? 2 : 4;
  const cuuint64_t stride[2] = {static_cast<cuuint64_t>(width) * bytes,
                                static_cast<cuuint64_t>(pitch) * bytes};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(as.columns), 1, static_cast<cuuint32_t>(rows)},
                   step[3] = {1, 1, 1};
  const CUresult status =
      encode(&map, bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 3,
             const_cast<void*>(data), size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
             as.swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled refuses (", width, ", ", heads, ", ", tokens,
        ") with pitch ", pitch);
  return map;
}

}  // namespace weft::cuda
