#pragma once
// RMS norm (Zhang & Sennrich 2019) or layer norm with its parameters, or SRMSNorm, the RMS norm without any
// (TransNormerLLM, Qin et al. 2023).

#include "attention/mechanism.h"
#include "autograd/ops/add_rms_norm.h"
#include "autograd/ops/few_rows.h"

namespace weft {

class Norm {
 public:
  // kind: rms, layer or srms
  Norm(const std::string& kind, int64_t width, double eps, const ParameterScope& scope);
  Variable operator()(const Variable& x) const;  // over the last dimension
  // x + branch and its norm; of x alone where branch is undefined.
  SumAndNorm operator()(const Variable& x, const Variable& branch) const;
  // For few_rows_linear, where it is an RMS norm.
  bool is_rms() const { return !bias_.defined(); }
  Around around() const;

 private:
  Parameter gain_, bias_;
  double eps_;
};

}  // namespace weft
