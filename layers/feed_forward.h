#pragma once
// The feed-forward half of a block: SwiGLU (Shazeer 2020) or GELU.

#include "attention/mechanism.h"

namespace weft {

class FeedForward {
 public:
  // kind: swiglu or gelu; inner: its hidden width
  FeedForward(const std::string& kind, int64_t width, int64_t inner, int64_t depth,
              const ParameterScope& scope);
  Variable operator()(const Variable& x) const;  // (N, C) -> (N, C)

 private:
  bool gated_;
  Parameter up_, down_;
};

}  // namespace weft
