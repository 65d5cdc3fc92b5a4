#pragma once
// The feed-forward half of a block: SwiGLU (Shazeer 2020), its form without an activation, SGLU
// (x W_v * x W_u) W_o (TransNormerLLM, Qin et al. 2023), or GELU.

#include "attention/mechanism.h"

namespace weft {

class FeedForward {
 public:
  // kind: swiglu, sglu or gelu; inner: its hidden width
  FeedForward(const std::string& kind, int64_t width, int64_t inner, int64_t depth,
              const ParameterScope& scope);
  Variable operator()(const Variable& x) const;  // (N, C) -> (N, C)

 private:
  std::string kind_;
  Parameter up_, down_;
};

}  // namespace weft
