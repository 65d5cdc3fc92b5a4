#pragma once
// Attention of each token over the best scored candidates so far: SPARSEK's kept pairs (attention/sparsek.h)
// of whole documents, without a list of pairs for each token. README.md, "Kept pairs" has why intervals are
// enough.

#include <vector>

#include "attention/part.h"

namespace weft {

struct KeptOptions {
  int64_t kept = 1;       // pairs that are attended to
  int64_t support = 2;    // highest scores over which the gates are computed, > kept
  double scale = 1;       // of q k^T
  bool gate_keys = true;  // gates scale keys too, not values alone
};

// Row t adds a candidate {k_t, v_t} with the score u_t, or none where that is -infinity (or NaN). Row t
// attends to the `kept` best candidates of its document up to t, its own included, ties: the earlier. With
// p_tj = clip(u_j - tau_t, 0, 1), tau_t such that p over the `support` best sums to `kept` (all 1 while there
// are no more than that),
//   s_tj = scale p_tj q_t . k_j (without p if it scales values alone)
//   o_t = sum_j softmax_j(s_tj) p_tj v_j      lse_t = log sum_j e^(s_tj); 0 and -infinity for no candidate
// q (N, H, Dk), u (N, H), k (N, G, Dk), v (N, G, Dv), all of one dtype, f32 or f64, G a divisor of H; rows
// are those of the layout's documents, from their start. Returns {o (N, H, Dv), lse (N, H)}. Time N (kept +
// support), memory N.
std::vector<Variable> kept_attention(const Variable& q, const Variable& k, const Variable& v,
                                     const Variable& u, const Layout& layout, const KeptOptions& options);

// What follows from the scores alone.
struct KeptPairs {
  Tensor leave;  // (2, H, N) i32: the first row that a candidate is not kept at, nor in the support; its own
                 // where it never was, the end of its document where it stays
  Tensor tau;    // (N, H) in u's dtype; -infinity where all gates are 1
  Tensor between;  // (N, H) i32: how many of the support have a gate strictly between 0 and 1
};
// Documents by rows.
struct KeptRows {
  Tensor first;  // (documents + 1) i32
  Tensor tiles;  // (B, 3) i32: [begin, end) of a tile of kKeptTile rows of a document, and where that starts
  Tensor tile;   // (N) i32: of each row, its tile
};
constexpr int64_t kKeptTile = 64;

namespace cpu {
void kept_select(const KeptPairs& pairs, const Tensor& u, const KeptRows& rows, const KeptOptions& options);
void kept_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                  const Tensor& u, const KeptPairs& pairs, const KeptRows& rows, const KeptOptions& options);
// All d are overwritten.
void kept_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& du, const Tensor& q,
                   const Tensor& k, const Tensor& v, const Tensor& u, const KeptPairs& pairs,
                   const KeptRows& rows, const Tensor& o, const Tensor& lse, const Tensor& d_o,
                   const Tensor& d_lse, const KeptOptions& options);
}  // namespace cpu
namespace cuda {
void kept_select(const KeptPairs& pairs, const Tensor& u, const KeptRows& rows, const KeptOptions& options);
void kept_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                  const Tensor& u, const KeptPairs& pairs, const KeptRows& rows, const KeptOptions& options);
void kept_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& du, const Tensor& q,
                   const Tensor& k, const Tensor& v, const Tensor& u, const KeptPairs& pairs,
                   const KeptRows& rows, const Tensor& o, const Tensor& lse, const Tensor& d_o,
                   const Tensor& d_lse, const KeptOptions& options);
}  // namespace cuda

}  // namespace weft
