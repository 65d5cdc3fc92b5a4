#pragma once
// Refined gated linear attention (ReGLA; Lu et al. 2025, arXiv 2502.01578): gated linear attention with
// features that are positive and bounded, a refined gate that still learns where the plain one saturates, and
// a norm in place of a denominator.
//   f_t = (1 - r_t) g_t^2 + r_t (1 - (1 - g_t)^2) = g_t + (2 r_t - 1) g_t (1 - g_t)     (Gu et al. 2020)
//   S_t = diag(f_t) S_{t-1} + phi_k(k_t) v_t^T,  y_t = RMSNorm(scale S_t^T phi_q(q_t))
//   phi_q(q_t) = e^{q_t - max_c q_tc},  phi_k(k_s) = e^{k_s - M}
// g is given as its logarithm; r in (0, 1); both for each key channel.
//
// M is one number for all keys, so that a larger key counts for more: in the paper the largest feature of all
// keys of the sequence. Later ones are among these, so here it is M_t, the largest so far or 0: M_t
// multiplies all that a token reads and cancels in the norm, but for its eps, so no gradient goes through it
// (one that should be 0 would consist of bf16's rounding errors). States are in units of e^{M_t}: an adjoint
// of S gives the gradient with M fixed. When M grows, the state shrinks by e^{M_{t-1} - M_t}, which is one
// more decay.
//
// The factor that gives products of the features of normal q and k variance 1 is 1 / (e sqrt(d (e^2 - 1)))
// (the paper's theorem 3.1), the default of `scale`; it cancels in the norm as well, whose eps is small
// beside it. The norm is taken over each head and has a gain for each channel.
//
// Introduction, related work and experiments of the paper were read; section 3 was looked for and could not
// be found. Features, factor and gate are from two independent transcriptions of it that agree. They write
// the gate as f 1^T beside v phi(k)^T, which would be a decay of value channels; the experiments say that it
// is built on Flash Linear Attention and shares GLA's formulation, so here it is of key channels. Whether the
// norm subtracts the mean they do not say.

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
