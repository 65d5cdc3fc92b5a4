#pragma once
// Rows of a table, looked up by token id.

#include "autograd/tape.h"

namespace weft {

// y[i] = table[ids[i]].  table (V, C), ids (N) i32 -> y (N, C)
// The gradient of a row is summed in token order. An id outside [0, V) is an Error with Exit::data.
Variable embedding(const Variable& table, const Tensor& ids);

namespace cpu {
void embedding_forward(const Tensor& y, const Tensor& table, const Tensor& ids);
// to = beta to + scattered dy, beta 0 or 1
void embedding_backward(const Tensor& to, const Tensor& dy, const Tensor& ids, double beta);
}  // namespace cpu
namespace cuda {
void embedding_forward(const Tensor& y, const Tensor& table, const Tensor& ids);
void embedding_backward(const Tensor& to, const Tensor& dy, const Tensor& ids, double beta);
}  // namespace cuda

}  // namespace weft
