#include "autograd/ops/embedding.h"

#include <cstring>

#include "autograd/ops/convert.h"
#include "autograd/ops/rows.h"
#include "autograd/parallel.h"

namespace weft::cpu {

void embedding_forward(const Tensor& y, const Tensor& table, const Tensor& ids) {
  const int32_t* id = ids.data<int32_t>();
  for (int64_t i = 0; i < ids.dim(0); ++i)
    if (id[i] < 0 || id[i] >= table.dim(0))
      throw Error(Exit::data,
                  text("embedding: token id ", id[i], " is outside the vocabulary of ", table.dim(0)),
                  text("token ", i), "use the tokenizer the model was made for");
  const size_t row = static_cast<size_t>(table.dim(1) * size_of(table.dtype()));
  char* to = static_cast<char*>(y.raw());
  const char* from = static_cast<const char*>(table.raw());
  parallel_for(ids.dim(0), row_grain(table.dim(1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::memcpy(to + static_cast<size_t>(i) * row, from + static_cast<size_t>(id[i]) * row, row);
  });
}

void embedding_backward(const Tensor& to, const Tensor& dy, const Tensor& ids, double beta) {
  if (to.dtype() == Dtype::bf16) {  // a sum of many tokens does not fit in bf16
    const Tensor wide = zeros(to.shape(), Dtype::f32);
    embedding_backward(wide, dy, ids, 1);
    return beta == 0 ? convert(to, wide) : accumulate(to, wide);
  }
  if (beta == 0) to.zero();
  const int32_t* id = ids.data<int32_t>();
  const int64_t tokens = ids.dim(0), columns = to.dim(1);
  with_float(to.dtype(), [&]<class To>() {
    with_float(dy.dtype(), [&]<class T>() {
      To* sum = to.data<To>();
      const T* g = dy.data<T>();
      // By columns, so that each task sees all tokens in their order.
      parallel_for(columns, std::max<int64_t>(64, row_grain(tokens)), [&](int64_t begin, int64_t end) {
        for (int64_t i = 0; i < tokens; ++i) {
          To* s = sum + id[i] * columns;
          const T* row = g + i * columns;
#pragma omp simd
          for (int64_t c = begin; c < end; ++c)
            s[c] = static_cast<To>(Acc<To>(s[c]) + static_cast<Acc<To>>(Acc<T>(row[c])));
        }
      });
    });
  });
}

}  // namespace weft::cpu
