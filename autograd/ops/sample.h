#pragma once
// Draws token ids from logits, on the device that holds the logits.

#include "autograd/tensor.h"

namespace weft {

struct DrawOptions {
  double temperature = 1;  // 0: the largest logit
  int64_t top_k = 0;       // draw only among this many largest logits; 0: all
  double top_p = 1;        // of these, only among the fewest largest that have this share of their weight
  uint32_t seed = 1;
  uint32_t stream = 0;  // stream_of(what draws)
};

// Draws an index for each row of logits (M, V), f32 or f64, with weights e^{z / temperature}: the first index
// at which the running sum of weights reaches the draw. The order is that of the row or, with top_k or top_p
// (nucleus sampling, Holtzman et al. 2020), from the largest down; of equal logits the lower index comes
// first. The draw of row m is number index[m] (M) i32 of (seed, stream), so it depends neither on the other
// rows nor on their number. -> (M) i32
Tensor sample_rows(const Tensor& logits, const Tensor& index, const DrawOptions& draws);
// The same, into `to`.
void sample_rows_into(const Tensor& to, const Tensor& logits, const Tensor& index, const DrawOptions& draws);

// x += 1, y += 1.  i32, of one size
void increment(const Tensor& x, const Tensor& y);

namespace cpu {
void sample_rows(const Tensor& to, const Tensor& logits, const Tensor& index, const DrawOptions& draws);
void increment(const Tensor& x, const Tensor& y);
}  // namespace cpu
namespace cuda {
void sample_rows(const Tensor& to, const Tensor& logits, const Tensor& index, const DrawOptions& draws);
void increment(const Tensor& x, const Tensor& y);
}  // namespace cuda

}  // namespace weft
