#pragma once
// Softmax attention by cuDNN, of documents that are whole. The one place that knows the library is
// flash_attention_cudnn.cpp. In a build without it (WEFT_CUDNN) these functions answer no, and our own
// kernels are used.

#include <string>

#include "attention/part.h"

namespace weft::cuda {

#ifdef WEFT_CUDNN

// The version that runs, such as "9.14.0"; empty where it cannot start here.
std::string cudnn_version();

// Each says whether it did the work: bf16, softmax weights, causal or full, options.documents known, and a
// plan that cuDNN has. What it refuses is noted once (autograd/notes.h). Shapes as in flash_attention.h; o,
// lse, dq, dk and dv are written whole. Gradients of documents of unequal length have the pitches of q, k, v.
bool cudnn_attention_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k,
                             const Tensor& v, const Tensor& position, const AttentionOptions& options);
// Adds in an order that differs from run to run.
bool cudnn_attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& q,
                              const Tensor& k, const Tensor& v, const Tensor& position, const Tensor& o,
                              const Tensor& lse, const Tensor& d_o, const AttentionOptions& options);

#else

inline std::string cudnn_version() { return ""; }
inline bool cudnn_attention_forward(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                    const Tensor&, const AttentionOptions&) {
  return false;
}
inline bool cudnn_attention_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                     const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                     const Tensor&, const Tensor&, const AttentionOptions&) {
  return false;
}

#endif

}  // namespace weft::cuda
