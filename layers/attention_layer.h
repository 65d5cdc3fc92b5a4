#pragma once
// A mechanism between its projections: the inputs that it declares are projected from x, and its outputs are
// normalised if it asks for that, and projected back.

#include <vector>

#include "attention/registry.h"
#include "layers/norm.h"

namespace weft {

struct AttentionLayerConfig {
  std::string mechanism = "softmax";
  FieldValue attributes = {};  // of the mechanism
  Dimensions dims = {};
  int64_t short_conv = 0;  // width of a causal convolution over the projections; 0 = none
  double norm_eps = 1e-6;
};

class AttentionLayer {
 public:
  AttentionLayer(const AttentionLayerConfig& config, const ParameterScope& scope);

  // x (N, C) -> (N, C)
  Variable operator()(const Variable& x, Crossing& cross) const;
  // x + attention(norm(x)) for the few rows of a decoding step, in fewer kernels; only where `fuses` is
  // true.
  Tensor step(const Tensor& x, const Norm& norm, Crossing& cross) const;
  bool fuses(const Tensor& x, const Norm& norm) const;
  const Mechanism& mechanism() const { return *mechanism_; }
  const AttentionLayerConfig& config() const { return config_; }

 private:
  // An input of the mechanism, and how it comes about.
  enum class Source { x, heads, gate, fixed };
  struct Sourced : Input {
    Source source;
    std::vector<double> values;  // of a fixed one
  };

  Variable convolve(const Variable& packed, Crossing& cross) const;
  // The mechanism's output, from the packed projection of x, and from x where it has other inputs.
  Variable attend(const Variable& projected, const Variable& x, Crossing& cross) const;

  AttentionLayerConfig config_;
  std::unique_ptr<Mechanism> mechanism_;
  std::vector<Sourced> inputs_;
  Parameter projection_;         // the heads' inputs, packed
  Parameter gates_, gate_bias_;  // decays and strengths, one a head each
  Parameter conv_, output_gain_, output_;
  RepeatedRows fixed_;
};

}  // namespace weft
