#pragma once
// Three memories of Miras (Behrouz et al. 2025), without momentum: A_t = alpha_t A_{t-1} - eta_t grad l(W;
// k_t, v_t), where alpha is the share that is *kept*, and e = M(W; k) - v:
//
//   moneta   l = sum_i |e_i|^p,  W = A / |A|_q^(q-2)        p = 3, q = 4
//   yaad     l = Huber's loss of the length of e: |e|^2 up to delta_t, then straight, so that its slope
//            2 e min(1, delta_t / |e|) is continuous
//   memora   l = |e|^2,  W = softmax(A) over the outputs of each input, so that up to a constant of each
//            slice log W_t = alpha_t log W_{t-1} - eta_t grad
//
// This follows transcriptions of section 5 of the paper. There the gates are one number a channel (here one
// a head), sign is tanh(a x) (here x / |x| smoothed, the slope of the smoothed loss), and Memora's
// chunk starts with a token whose step is exact; the other tokens take their gradients at its weights, and
// weights are read without the softmax.
//
// |x| is smoothed to sqrt(x^2 + epsilon), in Moneta alone. Chunks as in memory.h: where W is not linear in A,
// it is applied in full at the last token of each chunk; before, Moneta keeps the factor and Memora the
// weights of the chunk's start.

#include "attention/memory_attention.h"

namespace weft {

class Miras : public MemoryAttention {
 public:
  std::vector<Input> inputs() const override;

 protected:
  using MemoryAttention::MemoryAttention;
  Gates gates(const Block& block) const override;
  Variable naive_slope(const Variable& error, const Variable& bound) const override;
};

struct MonetaConfig : MemoryConfig {
  double p = 3, q = 4;
  double epsilon = 1e-2;
  void fields(FieldVisitor& f);
};

class Moneta : public Miras {
 public:
  using Config = MonetaConfig;
  Moneta(const Config& config, Dimensions dims, const ParameterScope& scope);
  std::vector<Identity> identities() const override;

 protected:
  Variable naive_slope(const Variable& error, const Variable& bound) const override;
  Variable naive_weights(const Variable& a) const override;
  Variable naive_weights_inside(const Variable& a, const Variable& a_start) const override;

 private:
  Variable norm_factor(const Variable& a) const;
  double p_, q_, epsilon_;
};

class Yaad : public Miras {
 public:
  using Config = MemoryConfig;
  Yaad(const Config& config, Dimensions dims, const ParameterScope& scope);
  std::vector<Input> inputs() const override;
  std::vector<Identity> identities() const override;

 protected:
  Gates gates(const Block& block) const override;
  Variable naive_slope(const Variable& error, const Variable& bound) const override;
};

class Memora : public Miras {
 public:
  using Config = MemoryConfig;
  Memora(const Config& config, Dimensions dims, const ParameterScope& scope);
  std::vector<Input> inputs() const override;
  std::vector<Identity> identities() const override;

 protected:
  Variable naive_weights(const Variable& a) const override;
  Variable naive_weights_inside(const Variable& a, const Variable& a_start) const override;
};

}  // namespace weft
