#pragma once
// TransNormer's NormAttention (Qin et al. 2022): linear attention with an RMS norm of its outputs in place of
// the denominator.
//   y_t = RMSNorm(scale S_t^T phi(q_t)),  S_t = S_{t-1} + phi(k_t) v_t^T
// Where the sum of the weights goes to 0 the gradient of the form with a denominator grows without bound; the
// norm's eps bounds it here. The paper's lower layers are diag_attention: layers: [diag_attention*2,
// transnormer*2].
//
// The norm spans the channels of all heads, as in the authors' code of the successor; per head is an option.

#include "attention/feature_map.h"

namespace weft {

struct TransNormerConfig {
  double scale = 0;
  int64_t chunk = 64;
  std::string feature_map = "elu";
  bool norm_per_head = false;
  void fields(FieldVisitor& f);
};

class TransNormer : public Mechanism {
 public:
  using Config = TransNormerConfig;
  TransNormer(Config config, Dimensions dims, const ParameterScope& scope);

  std::vector<Input> inputs() const override;
  Variable forward(const Block& block, Crossing& cross) const override;
  Variable reference(const Block& block) const override;
  std::vector<Identity> identities() const override;

 private:
  Config config_;
  FeatureMap map_;
  Parameter gain_;
};

}  // namespace weft
