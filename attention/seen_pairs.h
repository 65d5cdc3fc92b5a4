#pragma once
// How much attention has to compute, from who holds which tokens alone: the same on a device, on meta and
// over ranks.

#include "attention/part.h"

namespace weft {

// Pairs of a query and a key that the options let meet. Segments of either list do not overlap.
double seen_pairs(const AttentionOptions& options, const Segments& queries, const Segments& keys);
// Of queries that have all keys of their documents up to their segment's end, as with a Halo.
double seen_pairs(const AttentionOptions& options, const Segments& queries);

// Multiplications and additions of so many pairs in each head of q (N, H, Dk), v (M, Hkv, Dv): the scores and
// o; on the way back the scores again, d o v^T, dq, dk and dv.
double attention_operations(const Merge& part, double pairs, const Tensor& q, const Tensor& v, bool backward);

}  // namespace weft
