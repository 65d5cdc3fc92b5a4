#pragma once
// What softmax attention on the CPU makes of a tile of scores between its products of matrices
// (flash_attention_cpu.cpp). softmax_tile_cpu.cpp is compiled for two instruction sets
// (autograd/ops/instruction_set.h), whose results have equal bits.

#include <cstdint>

namespace weft::cpu {

// On the way out, a tile of scores s (rows, columns), dense: s = e^(s - peak), where peak is the largest
// score of the row so far; the row's sum grows by the tile's, and what was summed up to the last peak, sum
// and acc (rows, width), shrinks to the new one. A row whose scores are all -infinity adds nothing.
template <class W>
struct SoftmaxTile {
  W *s, *acc, *peak, *sum;
  int64_t rows, columns, width;
};

// On the way back, with p holding scores and ds the gradients of the weights, both (rows, columns), dense:
// p = e^(p - lse), ds = scale p (ds - delta), with one lse and one delta a row.
template <class W>
struct SoftmaxGradientTile {
  W *p, *ds;
  const W *lse, *delta;
  int64_t rows, columns;
  W scale;
};

namespace base {
template <class W>
void softmax_tile(const SoftmaxTile<W>& x);
template <class W>
void softmax_gradient_tile(const SoftmaxGradientTile<W>& x);
}  // namespace base
namespace avx512 {
template <class W>
void softmax_tile(const SoftmaxTile<W>& x);
template <class W>
void softmax_gradient_tile(const SoftmaxGradientTile<W>& x);
}  // namespace avx512

// By the better instruction set that this processor has.
template <class W>
void softmax_tile(const SoftmaxTile<W>& x);
template <class W>
void softmax_gradient_tile(const SoftmaxGradientTile<W>& x);

}  // namespace weft::cpu
