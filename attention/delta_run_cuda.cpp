// How delta_run reaches the launchers of attention/kernels.

#include "attention/delta_run.h"
#include "attention/kernel_arguments.h"
#include "attention/kernels/delta_rule.h"
#include "autograd/cuda/runtime.h"

namespace weft::cuda {
namespace {

DeltaRule delta_rule_of(const DeltaInputs& x) {
  return {.tokens = x.q.dim(0),
          .documents = x.documents,
          .offsets = static_cast<const int*>(x.offsets.raw()),
          .heads = static_cast<int>(x.q.dim(1)),
          .d_k = static_cast<int>(x.q.dim(2)),
          .d_v = static_cast<int>(x.v.dim(2)),
          .dtype = x.q.dtype(),
          .scale = static_cast<float>(x.scale),
          .beta = floats(x.beta),
          .log_decay = floats(x.g)};
}

}  // namespace

void delta_run_buffers(RunBuffers& buffers, const DeltaInputs& x, bool backward_follows) {
  if (x.q.dim(0) == 0) return;
  const DeltaRule shape = delta_rule_of(x);
  buffers = {.kept = delta_rule_kept(shape, backward_follows) / 4,
             .backward = delta_rule_workspace(shape) / 4};
}

void delta_run_forward(const Tensor& o, const Tensor& final_state, const Tensor& kept, const DeltaInputs& x,
                       bool backward_follows) {
  delta_rule_forward(delta_rule_of(x), rows_of(x.q), rows_of(x.k), rows_of(x.v), floats(x.initial_state),
                     written(o), floats(final_state), kept.raw(), backward_follows, stream());
}

void delta_run_backward(const DeltaGradients& d, const Tensor& workspace, const DeltaInputs& x,
                        const Tensor& kept, const Tensor& d_o, const Tensor& d_final_state) {
  delta_rule_backward(
      delta_rule_of(x), rows_of(x.q), rows_of(x.k), rows_of(x.v), floats(x.initial_state), rows_of(d_o),
      floats(d_final_state), kept.raw(),
      {written(d.q), written(d.k), written(d.v), floats(d.beta), floats(d.g), floats(d.initial_state)},
      workspace.raw(), stream());
}

}  // namespace weft::cuda
