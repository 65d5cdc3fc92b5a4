#pragma once
// SPARSEK attention (Lou et al. 2024, "Sparser is Faster and Less is More: Efficient Sparse Attention for
// Long-Range Transformers", arXiv 2406.16747). Keys are scored without the query, u_j; each token attends
// to the last `window` tokens and, among those before the window, to the k of highest score:
//   z_j = u_j + slope j          C_t = {j <= t - window},  window = 0: j <= t
//   p_t = sparsek(z_j, j in C_t; k)       autograd/ops/sparsek.h; 1 for all while C_t has k or fewer
//   S_t = the k highest of C_t            ties: the earlier
//   y_t = softmax attention over the window, and over the keys p_tj k_j with values p_tj v_j of S_t, in one
// The gates p carry the gradient to the scores. Scores never change, so what left S_t does not come back: at
// token t only k pairs and the window are kept.
//
// The paper's text and the authors' repository (LouChao98/sparsek_attention) were looked for and could not be
// found. This follows a public reimplementation of the paper's algorithm 1, which agrees with summaries: the
// rows of Diag(p) that are in the hard top k multiply keys and values alike (gate=v: values alone), softmax
// over these, scores linear in x plus a slope times the position. How the window joins (one softmax over both
// here) is not in it. The support of p can be wider than S_t, without bound where scores are alike; here it
// ends after the `support` highest scores, of which only the scores are kept, so p is that of the paper
// wherever tau_t lies above the next score. With grouped heads every query head keeps its own pairs. A state
// holds scores and keys at their old positions: given to another text as its start, it acts as if the texts
// were one only without slope and rotation.

#include "attention/mechanism.h"

namespace weft {

struct SparseKConfig {
  int64_t k = 32;
  int64_t window = 64;
  int64_t support = 0;
  double slope = 0;
  std::string gate = "kv";
  double scale = 0;
  std::string position = "none";
  double rope_theta = 10000;
  int64_t chunk = 64;
  void fields(FieldVisitor& f);
};

class SparseK : public Mechanism {
 public:
  using Config = SparseKConfig;
  SparseK(Config config, Dimensions dims, const ParameterScope& scope);

  std::vector<Input> inputs() const override;
  Variable forward(const Block& block, Crossing& cross) const override;
  Variable reference(const Block& block) const override;
  std::vector<Identity> identities() const override;

 private:
  // The window's {o, lse}, and the candidates {k, v, u} that each token adds: what leaves its window.
  struct Near {
    Variable o, lse, k, v, u;
  };
  Near near(const Block& block, const Variable& u, Crossing& cross) const;
  // The selected pairs' {o, lse}, (N, H, Dv) and (N, H, 1), from candidates.
  Scan far(Dtype dtype, Device device) const;

  Config config_;
};

}  // namespace weft
