#include <limits>

#include "attention/sparsek_rows.h"

namespace weft::cpu {

void numbers_of(const Tensor& y, const Tensor& x) {
  const int32_t* from = x.data<int32_t>();
  with_float(y.dtype(), [&]<class T>() {
    T* to = y.data<T>();
    for (int64_t i = 0; i < y.numel(); ++i) to[i] = static_cast<T>(static_cast<Acc<T>>(from[i]));
  });
}

void pair_rows(const Tensor& rows, const Tensor& indices, int64_t gap, int64_t pairs) {
  const int64_t runs = indices.dim(0), c = indices.dim(1), width = indices.dim(2), kept = rows.dim(2);
  const int32_t* from = indices.data<int32_t>();
  int32_t* to = rows.data<int32_t>();
  for (int64_t i = 0; i < runs * c; ++i)
    for (int64_t j = 0; j < kept; ++j) {
      const int64_t at = from[i * width + j];
      to[i * kept + j] = static_cast<int32_t>(i / c * pairs + (at < kept ? at : at - gap));
    }
}

void best_rows(const Tensor& rows, const Tensor& scores, const Tensor& order) {
  const int64_t p = scores.dim(1), width = order.dim(1), count = rows.dim(1);
  const int32_t* from = order.data<int32_t>();
  int32_t* to = rows.data<int32_t>();
  with_float(scores.dtype(), [&]<class T>() {
    const T* z = scores.data<T>();
    for (int64_t i = 0; i < rows.dim(0); ++i)
      for (int64_t j = 0; j < count; ++j) {
        const int64_t at = i * p + from[i * width + j];
        const bool none = Acc<T>(z[at]) == -std::numeric_limits<Acc<T>>::infinity();
        to[i * count + j] = none ? -1 : static_cast<int32_t>(at);
      }
  });
}

}  // namespace weft::cpu
