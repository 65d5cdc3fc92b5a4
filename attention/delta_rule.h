#pragma once
// The delta rule as an online memory: before a value is written, what the memory already answers for its key
// is removed. Keys should have length 1, or the memory may diverge.
//
//   delta_rule        S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T,  y_t = scale S_t^T q_t
//                     (Schlag et al. 2021; Widrow & Hoff 1960)
//   gated_delta_rule  the same on e^{g_t} S_{t-1}: it forgets first (Yang, Kautz & Hatamizadeh 2024)
//
// A token acts on the state as an affine map, and so does a chunk: a Scan with the state {transition, S}. In
// a chunk the written errors solve a triangular system (the WY form of Yang et al. 2024); README.md derives
// it.

#include "attention/mechanism.h"

namespace weft {

struct DeltaRuleConfig {
  double scale = 0;
  int64_t chunk = 64;
  void fields(FieldVisitor& f);
};

class DeltaRule : public Mechanism {
 public:
  using Config = DeltaRuleConfig;
  DeltaRule(Config config, Dimensions dims, const ParameterScope& scope);

  std::vector<Input> inputs() const override;
  Variable forward(const Block& block, Crossing& cross) const override;
  Variable reference(const Block& block) const override;
  std::vector<Identity> identities() const override;
  bool normalize_output() const override { return true; }

 protected:
  virtual bool gated() const { return false; }

 private:
  Config config_;
};

class GatedDeltaRule : public DeltaRule {
 public:
  using DeltaRule::DeltaRule;
  std::vector<Input> inputs() const override;
  std::vector<Identity> identities() const override;

 protected:
  bool gated() const override { return true; }
};

}  // namespace weft
