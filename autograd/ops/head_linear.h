#pragma once
// Projections into heads and out of them where each token has only some heads on, as in mixture-of-head
// attention (Jin et al. 2024). A head that is off costs no product, forward or backward; its elements are
// zero, and so is their gradient.
//
// A head's tokens are gathered, multiplied by the head's part of the weight, and put back. The result of a
// token depends on no other token: sums over heads are formed head by head, in order and in the wide type.

#include "autograd/tape.h"

namespace weft {

// Which heads of n tokens are on: the first `always` heads for every token, each other head for a list.
struct HeadTokens {
  int64_t tokens = 0, always = 0;
  // Head always + i has the entries begin[i] to begin[i + 1] of rows and slots, i32: the token, and token *
  // heads + head. A list of one token has a second entry -1 (no token), because the product of a single row
  // would sum in another order.
  std::vector<int64_t> begin{0};
  Tensor rows = {}, slots = {};

  int64_t routed() const { return static_cast<int64_t>(begin.size()) - 1; }
  int64_t heads() const { return always + routed(); }
};

// Every head of every token is on.
HeadTokens all_heads(int64_t tokens, int64_t heads);
// chosen (N, k) i32: which of the `routed` heads after the first `always` each token has on, none twice. The
// host reads it, waiting for a GPU; on meta all heads get equally many tokens.
HeadTokens heads_of(const Tensor& chosen, int64_t always, int64_t routed);
// Whole heads, by one entry each.
HeadTokens heads_of(const std::vector<bool>& on, int64_t tokens, Device device);

// y[t, h] = W_h x[t], W_h being rows first + h size to first + (h + 1) size of weight.
//   x (N, C), weight (R, C) -> (N, H, size)
Variable linear_to_heads(const Variable& x, const Variable& weight, int64_t first, int64_t size,
                         const HeadTokens& on);
// y[t] = sum over h of W_h x[t, h], W_h being columns h D to (h + 1) D of weight.
//   x (N, H, D), weight (C, H D) -> (N, C)
Variable linear_from_heads(const Variable& x, const Variable& weight, const HeadTokens& on);

}  // namespace weft
