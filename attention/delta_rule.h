#pragma once
// The delta rule as an online memory (Schlag et al. 2021; Widrow & Hoff 1960): before a value is written,
// what the memory already answers for its key is taken back. Keys are meant to have length 1, or the memory
// may diverge.
//   S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T,  y_t = scale S_t^T q_t
// Here token by token, as a Carry.

#include "attention/mechanism.h"

namespace weft {

struct DeltaRuleConfig {
  double scale = 0;
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

 private:
  Config config_;
};

}  // namespace weft
