#pragma once
// The long-term memory of Titans (Behrouz et al. 2024): a function M of keys that learns at test time, by
// gradient descent with momentum (the surprise) and forgetting, to answer k_t with v_t:
//   S_t = eta_t S_{t-1} - theta_t grad |M(M_{t-1}; k_t) - v_t|^2
//   M_t = (1 - alpha_t) M_{t-1} + S_t        y_t = M(M_t; q_t)
// with gradients at the weights where the chunk of t began. The models with attention beside such a memory
// (MAC, MAG, MAL) are in titans_layers.h.
//
// Nothing in this bounds M. Where the keys of a chunk of C tokens are alike, a matrix's answer to them moves
// by 2 theta C / (1 - eta) of its error: beyond 2 every chunk overshoots further than the one before, and M
// grows until it is no number. With step_limit = L > 0, theta_t is L (1 - eta_t) / (2 C) of what is given, so
// that with gates that do not change a chunk moves an answer by at most L of its error (README.md).

#include "attention/memory_attention.h"

namespace weft {

struct TitansConfig : MemoryConfig {
  TitansConfig() { memory = "matrix"; }
  double step_limit = 0;
  void fields(FieldVisitor& f);
};

class Titans : public MemoryAttention {
 public:
  using Config = TitansConfig;
  Titans(const Config& config, Dimensions dims, const ParameterScope& scope);

  std::vector<Input> inputs() const override;
  std::vector<Identity> identities() const override;
  std::string warning() const override;
  // theta as the memory uses it, of that which is given; both wide, as is eta.
  Variable limited(const Variable& theta, const Variable& eta) const;

 protected:
  Gates gates(const Block& block) const override;
  Variable naive_slope(const Variable& error, const Variable& bound) const override;

 private:
  double step_limit_;
};

}  // namespace weft
