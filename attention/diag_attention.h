#pragma once
// TransNormer's DiagAttention (Qin et al. 2022): causal softmax attention inside blocks of w tokens that do
// not overlap, counted from the start of the document. Ranks cut between blocks, so nothing crosses. Meant
// for the lower layers, below NormAttention (transnormer).

#include "attention/mechanism.h"

namespace weft {

struct DiagAttentionConfig {
  double scale = 0;
  int64_t block = 64;
  void fields(FieldVisitor& f);
};

class DiagAttention : public Mechanism {
 public:
  using Config = DiagAttentionConfig;
  DiagAttention(Config config, Dimensions dims, const ParameterScope& scope);

  std::vector<Input> inputs() const override;
  Variable forward(const Block& block, Crossing& cross) const override;
  Variable reference(const Block& block) const override;
  std::vector<Identity> identities() const override;
  int64_t align() const override { return config_.block; }

 private:
  Config config_;
};

}  // namespace weft
