#pragma once
// Linear attention with decay, by chunks: S_t = e^{g_t} S_{t-1} + k_t v_t^T,  y_t = scale S_t^T q_t.
//
//   linear      g = 0 (Katharopoulos et al. 2020), with a feature map and a normaliser by choice
//   lightning   one fixed decay for each head
//               (TransNormerLLM, Qin et al. 2023; Lightning Attention-2, Qin et al. 2024;
//               RetNet, Sun et al. 2023)
//   simple_gla  one decay for each head and token (Mamba-2's and GLA's scalar gate; Yang et al. 2024)
//
// RetNet's own decays are 1 - 2^{-5-h}, to be given as g; its xPos rotation is not here.
//
// With b the running sum of g inside a chunk, only e^{b_i - b_j} with j <= i is formed, which never exceeds
// 1: no power of an inverse decay appears anywhere, so long chunks and strong decays are safe.

#include "attention/feature_map.h"

namespace weft {

struct LinearConfig {
  double scale = 0;
  int64_t chunk = 64;
  std::string feature_map = "identity";
  bool normalize = false;
  void fields(FieldVisitor& f);
};

// The scan over q, k (M, C, H, Dk), v (M, C, H, Dv) and, if gated, g (M, C, H).
Scan linear_scan(double scale, int64_t chunk, bool gated, int64_t heads, int64_t key, int64_t value,
                 Dtype dtype, Device device);

class LinearAttention : public Mechanism {
 public:
  using Config = LinearConfig;
  LinearAttention(Config config, Dimensions dims, const ParameterScope& scope);

  std::vector<Input> inputs() const override;
  Variable forward(const Block& block, Crossing& cross) const override;
  Variable reference(const Block& block) const override;
  std::vector<Identity> identities() const override;
  bool normalize_output() const override { return !config_.normalize; }

 protected:
  virtual bool gated() const { return false; }
  Config config_;

 private:
  FeatureMap map_;
};

class SimpleGla : public LinearAttention {
 public:
  using LinearAttention::LinearAttention;
  std::vector<Input> inputs() const override;
  std::vector<Identity> identities() const override;

 protected:
  bool gated() const override { return true; }
};

struct LightningConfig : LinearConfig {
  std::string decay = "alibi";
  void fields(FieldVisitor& f);
};

// The same with its decay fixed: g, if not given, is in every layer
//   decay=alibi   -slope_h of ALiBi's slopes (layers of TransNormerLLM, whose decays differ, are
//   transnormer_llm) decay=retnet  log(1 - 2^(-5 - h)), h = 0.. (Sun et al. 2023, "Retentive Network", arXiv
//   2307.08621)
class Lightning : public SimpleGla {
 public:
  using Config = LightningConfig;
  Lightning(Config config, Dimensions dims, const ParameterScope& scope);
  std::vector<double> fixed_input(const std::string& name) const override;
  std::vector<Identity> identities() const override;

 private:
  std::string decay_;
};

}  // namespace weft
