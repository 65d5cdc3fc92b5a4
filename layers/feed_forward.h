#pragma once
// The feed-forward half of a block: SwiGLU (Shazeer 2020), its form without an activation, SGLU
// (x W_v * x W_u) W_o (TransNormerLLM, Qin et al. 2023), or GELU.

#include "layers/norm.h"

namespace weft {

class FeedForward {
 public:
  // kind: swiglu, sglu or gelu; inner: its hidden width
  FeedForward(const std::string& kind, int64_t width, int64_t inner, int64_t depth,
              const ParameterScope& scope);
  Variable operator()(const Variable& x) const;  // (N, C) -> (N, C)
  // x + feed_forward(norm(x)) for the few rows of a decoding step, in fewer kernels; needs an RMS norm.
  Tensor step(const Tensor& x, const Norm& norm) const;

 private:
  Variable activated(const Variable& h) const;

  std::string kind_;
  Parameter up_, down_;
};

}  // namespace weft
