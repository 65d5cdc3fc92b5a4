#pragma once
// The gated units of Shazeer, "GLU variants improve transformer" (2020).

#include "autograd/tape.h"

namespace weft {

// y = silu(gate) * up.  gate, up (N, F), perhaps column views -> y (N, F)
Variable swiglu(const Variable& gate, const Variable& up);
// The same of one packed projection: gate is its first half of columns.  packed (N, 2F) -> y (N, F)
Variable swiglu(const Variable& packed);
// Without the activation, y = gate * up: the SGLU of TransNormerLLM (Qin et al. 2023).
Variable sglu(const Variable& packed);

namespace cpu {
// Every tensor (N, F), with any pitch.
void swiglu_forward(const Tensor& y, const Tensor& gate, const Tensor& up);
void swiglu_backward(const Tensor& dgate, const Tensor& dup, const Tensor& gate, const Tensor& up,
                     const Tensor& dy);
void sglu_forward(const Tensor& y, const Tensor& gate, const Tensor& up);
void sglu_backward(const Tensor& dgate, const Tensor& dup, const Tensor& gate, const Tensor& up,
                   const Tensor& dy);
}  // namespace cpu
namespace cuda {
void swiglu_forward(const Tensor& y, const Tensor& gate, const Tensor& up);
void swiglu_backward(const Tensor& dgate, const Tensor& dup, const Tensor& gate, const Tensor& up,
                     const Tensor& dy);
void sglu_forward(const Tensor& y, const Tensor& gate, const Tensor& up);
void sglu_backward(const Tensor& dgate, const Tensor& dup, const Tensor& gate, const Tensor& up,
                   const Tensor& dy);
}  // namespace cuda

}  // namespace weft
