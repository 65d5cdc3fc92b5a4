#pragma once
// The token mixer of TransNormerLLM (TNL; Qin et al. 2023, arXiv 2307.14995), whole: from x to what is added
// to it.
//
//   q = SiLU(x W_q),  k = SiLU(x W_k),  v = x W_v,  u = x W_u
//   o_t = sum_{s <= t} lambda^{t-s} (sum_c q_tc k_sc cos((t - s) theta_c)) v_s        per head
//   y = (SRMSNorm(o) * u) W_o,  SRMSNorm(o) = o sqrt(C) / |o| over the channels of all heads
//
// form=lightning is the layer of "Various Lengths, Constant Speed" (Qin et al. 2024, arXiv 2405.17381), TNL
// with Lightning Attention, with a gate of low rank:
//
//   v = SiLU(x W_v),  y = (LayerNorm(o) * sigmoid((x W_1) W_2)) W_o,  W_1 of value size columns
//
// The cosine (LRPE-d) is in layer 0 only, with theta learned for each head and channel; it is linear
// attention on the features [x cos(t theta), x sin(t theta)]. The state turns with the tokens that made it,
// so their number is part of it: layer 0 keeps {t, S}. The decay is fixed for each head and layer, and
// handled by linear_scan: no power of an inverse decay appears. The rest of the paper's block are ffn_kind:
// sglu, norm: srms and scale_embedding: true of a recipe.
//
// Read in the authors' code: modeling_transnormer.py, as released with the weights (u has no activation, the
// norm spans all heads, theta starts at 10000^{-2i/(H D)}, i over all channels), and of form=lightning
// examples/module/tnl_attn.py of github.com/OpenNLPLab/lightning-attention, which has no phase: phase=false.
// Both have lambda = e^{-s_h (1 - l/(L-1) + 1e-5)} with ALiBi's slopes s_h = 2^{-8h/H}, h = 1..H, for layer l
// = 0..L-1 of L: the default. decay=paper is equation 2 of the text, e^{-(8h/H) (1 - l/L)}, which runs over
// the heads the other way; h = 0..H-1 and l = 1..L, so that the last layer forgets nothing, are from a
// transcription: the text itself was looked for and could not be found.

#include "attention/mechanism.h"

namespace weft {

struct TransNormerLlmConfig {
  int64_t heads = 0, key = 0, value = 0, layer = -1, layers = 0;
  int64_t chunk = 64;
  std::string form = "llm";
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
  // q and k (N, H, Dk), v (N, H, Dv), and what the gate is made of: u, or x W_1 of form=lightning. In x's
  // dtype, by one product.
  std::vector<Variable> project(const Variable& x) const;
  // The norm, the gate and the last projection after o (N, H, Dv), in `dtype`.
  Variable finish(const Variable& o, const Variable& gate, Dtype dtype) const;
  bool lightning() const { return config_.form == "lightning"; }

  Config config_;
  RepeatedRows decays_;
  const ParameterStore& store_;
  Parameter q_, k_, v_, gate_, out_, theta_;
  Parameter norm_gain_, norm_bias_, gate_up_;  // of form=lightning
};

// Log decays of the heads of a layer, counted from 0, by the released code or by the paper's text.
std::vector<double> tnl_decay(int64_t heads, int64_t layer, int64_t layers, bool as_in_paper);

}  // namespace weft
