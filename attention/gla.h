#pragma once
// Gated linear attention (Yang et al. 2024): one decay for each key channel, head and token.
//   S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T,  y_t = scale S_t^T q_t
//
// A decay for each channel stands inside the product q_i . k_j, so a chunk is not simply a masked matrix
// product, and the form with e^{-b_j} on the keys overflows. Here a chunk is halved again and again
// (README.md): between two halves every exponent is measured from their border, and none exceeds 0.

#include "attention/mechanism.h"

namespace weft {

struct GlaConfig {
  double scale = 0;
  int64_t chunk = 64;
  void fields(FieldVisitor& f);
};

// The scan over q, k, g (M, C, H, Dk) and v (M, C, H, Dv), in the order q, k, v, g.
Scan channel_decay_scan(double scale, int64_t chunk, int64_t heads, int64_t key, int64_t value, Dtype dtype,
                        Device device);

// The recurrence token by token, with g the log decays (n, H, Dk) of one document.
Variable channel_decay_reference(const Variable& q, const Variable& k, const Variable& v, const Variable& g,
                                 double scale);

class Gla : public Mechanism {
 public:
  using Config = GlaConfig;
  Gla(Config config, Dimensions dims, const ParameterScope& scope);

  std::vector<Input> inputs() const override;
  Variable forward(const Block& block, Crossing& cross) const override;
  Variable reference(const Block& block) const override;
  std::vector<Identity> identities() const override;
  bool normalize_output() const override { return true; }

 private:
  Config config_;
};

}  // namespace weft
