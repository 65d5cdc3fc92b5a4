#pragma once
// Based (Arora et al. 2024): linear attention whose feature map is the second-order Taylor polynomial of exp,
// so that phi(q) . phi(k) = 1 + s + s^2/2 with s = q . k / sqrt(d), normalised by the sum of its weights;
// optionally with a small sliding window of exact softmax attention added. (The paper puts the window into
// layers of its own; set window to have both in one layer.)

#include "attention/mechanism.h"

namespace weft {

struct BasedConfig {
  int64_t chunk = 64;
  int64_t window = 0;
  void fields(FieldVisitor& f);
};

class Based : public Mechanism {
 public:
  using Config = BasedConfig;
  Based(Config config, Dimensions dims, const ParameterScope& scope);

  std::vector<Input> inputs() const override;
  Variable forward(const Block& block, Crossing& cross) const override;
  Variable reference(const Block& block) const override;
  std::vector<Identity> identities() const override;

 private:
  Config config_;
};

}  // namespace weft
