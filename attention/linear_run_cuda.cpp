// How linear_run reaches the launchers of attention/kernels.

#include "attention/kernel_arguments.h"
#include "attention/linear_run.h"
#include "autograd/cuda/runtime.h"

namespace weft::cuda {
namespace {

LinearAttention shape_of(const LinearRunProblem& p) {
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
                                                    : Gate::channel};
}

}  // namespace

int64_t linear_run_kept(const LinearRunProblem& p) { return linear_attention_kept(shape_of(p)); }

int64_t linear_run_workspace(const LinearRunProblem& p, bool backward) {
  return backward ? linear_attention_workspace(shape_of(p)) : 0;
}

void linear_run_forward(const LinearRunProblem& p, const Tensor& o, const Tensor& end, const Tensor& kept,
                        const Tensor&) {
  linear_attention_forward(shape_of(p), rows_of(p.q), rows_of(p.k), rows_of(p.v), floats(p.start), written(o),
                           floats(end), floats(kept), stream());
}

void linear_run_backward(const LinearRunProblem& p, const Tensor& d_o, const Tensor& d_end,
                         const Tensor& kept, const LinearRunGradients& d, const Tensor& workspace) {
  linear_attention_backward(shape_of(p), rows_of(p.q), rows_of(p.k), rows_of(p.v), floats(p.start),
                            rows_of(d_o), floats(d_end),
                            {written(d.q), written(d.k), written(d.v), floats(d.start), floats(d.g),
                             floats(kept), floats(workspace)},
                            stream());
}

}  // namespace weft::cuda
