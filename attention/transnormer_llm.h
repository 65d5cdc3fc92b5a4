#pragma once
// The token mixer of TransNormerLLM (TNL; Qin et al. 2023), whole: from x to what is added to it.
//
//   q = SiLU(x W_q),  k = SiLU(x W_k),  v = x W_v,  u = x W_u
//   o_t = sum_{s <= t} lambda^{t-s} (sum_c q_tc k_sc cos((t - s) theta_c)) v_s        per head
//   y = (SRMSNorm(o) * u) W_o,  SRMSNorm(o) = o sqrt(C) / |o| over the channels of all heads
//
// The cosine (LRPE-d) is that of layer 0 only, with theta learned a head and channel; it is linear attention
// on the features [x cos(t theta), x sin(t theta)]. The state turns with the tokens that made it, so their
// number is part of it: layer 0 keeps {t, S}. The decay is fixed a head and layer, and handled by
// linear_scan: no power of an inverse decay appears. The rest of the paper's block are ffn_kind: sglu,
// norm: srms and scale_embedding: true of a recipe.
//
// Where sources differ, the default is the released code, in which lambda = e^{-s_h (1 - l/(L-1) + 1e-5)}
// with ALiBi's slopes s_h = 2^{-8h/H}, h = 1..H, for layer l of L. decay=paper is the text's e^{-(8h/H) (1 -
// l/L)}, which runs over the heads the other way. That u has no activation, that the norm spans all heads and
// theta starts at 10000^{-2i/(H D)}, i over all channels, is the code's, too.

#include "attention/mechanism.h"

namespace weft {

struct TransNormerLlmConfig {
  int64_t heads = 0, key = 0, value = 0, layer = -1, layers = 0;
  int64_t chunk = 64;
  std::string decay = "code";
  bool phase = true;
  void fields(FieldVisitor& f);
};

class TransNormerLlm : public Mechanism {
 public:
  using Config = TransNormerLlmConfig;
  TransNormerLlm(const Config& config, const Dimensions& dims, const ParameterScope& scope);

  std::vector<Input> inputs() const override { return {{"x", "c"}}; }
  Variable forward(const Block& block, Crossing& cross) const override;
  Variable reference(const Block& block) const override;
  std::vector<Identity> identities() const override;
  // "g": the log decay of each head.
  std::vector<double> fixed_input(const std::string& name) const override;

 private:
  // q and k (N, H, Dk), v (N, H, Dv), in f32 (f64): the norm behind would show what bf16 rounds away.
  std::vector<Variable> project(const Variable& x) const;
  // The norm, the gate and the last projection behind o (N, H, Dv).
  Variable finish(const Variable& o, const Variable& x) const;

  Config config_;
  Parameter q_, k_, v_, u_, out_, theta_;
};

// Log decays of the heads of layer l of L, by the released code or by the paper's text.
std::vector<double> tnl_decay(int64_t heads, int64_t layer, int64_t layers, bool as_in_paper);

// x (N, H, D) at positions t (N, 1) -> [x cos(t theta), x sin(t theta)] (N, H, 2 D), theta (H, D)
Variable lrpe_features(const Variable& x, const Variable& theta, const Variable& position);

}  // namespace weft
