#pragma once
// Refined gated linear attention (Lu et al. 2025): gated linear attention with features that are positive and
// bounded, a refined gate that still learns where the plain one saturates, and a norm in place of a
// denominator.
//   f_t = (1 - r_t) g_t^2 + r_t (1 - (1 - g_t)^2) = g_t + (2 r_t - 1) g_t (1 - g_t)     (Gu et al. 2020)
//   S_t = diag(f_t) S_{t-1} + phi(k_t) v_t^T,  y_t = RMSNorm(S_t^T phi(q_t)),  phi(x) = e^{x - max_c x_c}
// g is given as its logarithm; r in (0, 1); both for each key channel.
//
// Gate and features are as summaries of the paper give them; its text was not at hand.
//
// The paper divides phi by a constant so that the variance of the products is 1. It multiplies S as a whole
// and cancels in the norm behind, whose eps is taken small beside it: `scale` holds it, 1 / sqrt(key size)
// by default. The norm has a gain a channel and is taken over each head.

#include "attention/mechanism.h"

namespace weft {

struct ReglaConfig {
  double scale = 0;
  int64_t chunk = 64;
  void fields(FieldVisitor& f);
};

class Regla : public Mechanism {
 public:
  using Config = ReglaConfig;
  Regla(Config config, Dimensions dims, const ParameterScope& scope);

  std::vector<Input> inputs() const override;
  Variable forward(const Block& block, Crossing& cross) const override;
  Variable reference(const Block& block) const override;
  std::vector<Identity> identities() const override;

 private:
  Config config_;
  Parameter gain_;
};

// log f of log g and r.
Variable refined_log_gate(const Variable& log_gate, const Variable& refine);

}  // namespace weft
