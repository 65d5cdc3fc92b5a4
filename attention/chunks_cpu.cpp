#include <algorithm>

#include "attention/chunks.h"

namespace weft::cpu {

void rows_padded_in_front(const Tensor& rows, const Tensor& document) {
  const int64_t length = document.dim(1);
  const int32_t* of = document.data<int32_t>();
  int32_t* to = rows.data<int32_t>();
  for (int64_t begin = 0; begin < rows.numel(); begin += length) {
    const int64_t padding = of + begin + length - std::find(of + begin, of + begin + length, -1);
    for (int64_t i = 0; i < length; ++i)
      to[begin + i] = i < padding ? -1 : static_cast<int32_t>(begin + i - padding);
  }
}

}  // namespace weft::cpu
