#pragma once
// Attention as its equation reads, for reference(): the whole score matrix of one document, made of basic
// ops. Nothing of the fast forms is used here.

#include "autograd/tape.h"

namespace weft {

// softmax(scale q k^T + bias) v, with an optional extra key of score sink_h and value 0.
//   q (n, H, Dk), k (n, G, Dk), v (n, G, Dv), bias (H, n, n) constant with -inf where nothing is seen, sink
//   (H)
Variable naive_attention(const Variable& q, const Variable& k, const Variable& v, const Tensor& bias,
                         double scale, const Variable& sink = {});

// bias(h, i, j) over one document of n tokens.
Tensor naive_bias(int64_t heads, int64_t n, Dtype dtype,
                  const std::function<double(int64_t, int64_t, int64_t)>& bias);

// Rotary embedding (Su et al. 2021) with the two halves of a head as pairs: x (n, H, D), position of row i is
// first + i.
Variable naive_rotary(const Variable& x, int64_t first, double theta);

// x / sqrt(mean(x^2) + eps) * gain over the last dimension.
Variable naive_rms_norm(const Variable& x, const Variable& gain, double eps);

}  // namespace weft
