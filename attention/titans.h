#pragma once
// The long-term memory of Titans (Behrouz et al. 2024): a function M of keys that learns at test time, by
// gradient descent with momentum (the surprise) and forgetting, to answer k_t with v_t:
//   S_t = eta_t S_{t-1} - theta_t grad |M(M_{t-1}; k_t) - v_t|^2
//   M_t = (1 - alpha_t) M_{t-1} + S_t        y_t = M(M_t; q_t)
// with gradients at the weights where the chunk of t began. The models with attention beside such a memory
// (MAC, MAG, MAL) are in titans_layers.h.

#include "attention/memory_attention.h"

namespace weft {

struct TitansConfig : MemoryConfig {
  TitansConfig() { memory = "matrix"; }
};

class Titans : public MemoryAttention {
 public:
  using Config = TitansConfig;
  Titans(const Config& config, Dimensions dims, const ParameterScope& scope);

  std::vector<Input> inputs() const override;
  std::vector<Identity> identities() const override;

 protected:
  Gates gates(const Block& block) const override;
  Variable naive_slope(const Variable& error, const Variable& bound) const override;
};

}  // namespace weft
