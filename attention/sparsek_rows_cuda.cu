#include <cmath>

#include "attention/sparsek_rows.h"
#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {
namespace {

template <class T>
void best_as(const Tensor& rows, const Tensor& scores, const Tensor& order) {
  const int64_t p = scores.dim(1), width = order.dim(1), count = rows.dim(1);
  const T* z = data<T>(scores);
  const int32_t* from = data<int32_t>(order);
  int32_t* to = data<int32_t>(rows);
  each(rows.numel(), [=] __device__(int64_t i) {
    int64_t j = i;
    const int64_t row = divide(j, count), at = row * p + from[row * width + j];
    to[i] = Acc<T>(z[at]) == Acc<T>(-INFINITY) ? -1 : static_cast<int32_t>(at);
  });
}

template <class T>
void numbers_as(const Tensor& y, const Tensor& x) {
  const int32_t* from = data<int32_t>(x);
  T* to = data<T>(y);
  each(y.numel(), [=] __device__(int64_t i) { to[i] = static_cast<T>(static_cast<Acc<T>>(from[i])); });
}

}  // namespace

void numbers_of(const Tensor& y, const Tensor& x) {
  with_float(y.dtype(), [&]<class T>() { numbers_as<T>(y, x); });
}

void pair_rows(const Tensor& rows, const Tensor& indices, int64_t gap, int64_t pairs) {
  const int64_t c = indices.dim(1), width = indices.dim(2), kept = rows.dim(2);
  const int32_t* from = data<int32_t>(indices);
  int32_t* to = data<int32_t>(rows);
  each(rows.numel(), [=] __device__(int64_t i) {
    int64_t j = i, list = divide(j, kept);
    const int64_t at = from[list * width + j], run = divide(list, c);
    to[i] = static_cast<int32_t>(run * pairs + (at < kept ? at : at - gap));
  });
}

void best_rows(const Tensor& rows, const Tensor& scores, const Tensor& order) {
  with_float(scores.dtype(), [&]<class T>() { best_as<T>(rows, scores, order); });
}

}  // namespace weft::cuda
