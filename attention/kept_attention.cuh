#pragma once
// What the CUDA kernels of kept_attention.h share: for a tile of rows and a head, the candidates that are
// kept at any of its rows.

#include "attention/kept_attention.h"
#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {

// On the device.
struct KeptTiles {
  const int32_t *tiles, *tile, *leave;  // of KeptRows; leave[h * n + j]
  const int32_t *list, *count;          // (B, H, width), the earlier first, and (B, H)
  int64_t n;
  int heads, width;

  __device__ const int32_t* listed(int64_t tile, int head) const {
    return list + (tile * heads + head) * width;
  }
};

// Its memory.
struct KeptLists {
  Tensor list, count;
  KeptTiles view;
};
// Of those kept, or (which = 1) of the support.
KeptLists kept_lists(const KeptPairs& pairs, const KeptRows& rows, int which, int64_t most);

}  // namespace weft::cuda
