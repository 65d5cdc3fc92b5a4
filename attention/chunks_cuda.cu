#include "attention/chunks.h"
#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {

void rows_padded_in_front(const Tensor& rows, const Tensor& document) {
  const int64_t length = document.dim(1);
  const int32_t* of = data<int32_t>(document);
  int32_t* to = data<int32_t>(rows);
  each(rows.numel(), [=] __device__(int64_t at) {
    int64_t i = at;
    const int64_t begin = divide(i, length) * length;
    int64_t size = 0, end = length;  // the first -1 lies in [size, end]: all behind it are padding
    while (size < end) {
      const int64_t middle = (size + end) / 2;
      if (of[begin + middle] == -1)
        end = middle;
      else
        size = middle + 1;
    }
    const int64_t padding = length - size;
    to[at] = i < padding ? -1 : static_cast<int32_t>(begin + i - padding);
  });
}

}  // namespace weft::cuda
