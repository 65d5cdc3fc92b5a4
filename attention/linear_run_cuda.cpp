// How linear_run reaches the launchers of attention/kernels.

#include "attention/kernel_arguments.h"
#include "attention/linear_run.h"
#include "autograd/cuda/runtime.h"

namespace weft::cuda {
namespace {

LinearAttention shape_of(const LinearInputs& p) {
  return {.tokens = p.q.dim(0),
          .documents = p.bounds.documents,
          .offsets = static_cast<const int*>(p.offsets.raw()),
          .longest = p.bounds.longest,
          .heads = static_cast<int>(p.q.dim(1)),
          .d_k = static_cast<int>(p.q.dim(2)),
          .d_v = static_cast<int>(p.v.dim(2)),
          .dtype = p.q.dtype(),
          .scale = static_cast<float>(p.scale),
          .log_decay = floats(p.g),
          .gate = !p.g.defined() || p.g.rank() == 1 ? Gate::fixed
                  : p.g.rank() == 2                 ? Gate::head
                                                    : Gate::channel,
          .wide_gradients = p.wide_gradients};
}

}  // namespace

// Kept in any case: what segments start from.
void linear_run_buffers(RunBuffers& buffers, const LinearInputs& x, bool) {
  const LinearAttention shape = shape_of(x);
  buffers = {.kept = linear_attention_kept(shape) / 4, .backward = linear_attention_workspace(shape) / 4};
}

void linear_run_forward(const Tensor& o, const Tensor& final_state, const Tensor& kept, const Tensor&,
                        const LinearInputs& x) {
  linear_attention_forward(shape_of(x), rows_of(x.q), rows_of(x.k), rows_of(x.v), floats(x.initial_state),
                           written(o), floats(final_state), floats(kept), stream());
}

void linear_run_backward(const LinearGradients& d, const Tensor& workspace, const LinearInputs& x,
                         const Tensor& kept, const Tensor& d_o, const Tensor& d_final_state) {
  linear_attention_backward(shape_of(x), rows_of(x.q), rows_of(x.k), rows_of(x.v), floats(x.initial_state),
                            rows_of(d_o), floats(d_final_state),
                            {written(d.q), written(d.k), written(d.v), floats(d.initial_state), floats(d.g),
                             floats(kept), floats(workspace)},
                            stream());
}

}  // namespace weft::cuda
