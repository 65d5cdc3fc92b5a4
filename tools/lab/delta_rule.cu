// The launchers of attention/kernels/delta_rule.h under C names, for delta_rule.py.

#include "attention/kernels/delta_rule.h"

#include "tools/lab/guarded.h"

using namespace weft;
using namespace weft::cuda;

// As in delta_rule.py.
struct DeltaArguments {
  int64_t tokens, documents, heads, d_k, d_v, is_f32, path, backward_follows;
  double scale;
  const int* offsets;
  const float *beta, *log_decay;
  Rows q, k, v, d_o;
  MutableRows o, d_q, d_k_rows, d_v_rows;
  const float *initial_state, *d_final_state;
  float *final_state, *d_initial_state, *d_beta, *d_log_decay;
  void *kept, *workspace;
};

namespace {

DeltaRule shape_of(const DeltaArguments& a) {
  DeltaRule p;
  p.tokens = a.tokens, p.documents = int(a.documents), p.offsets = a.offsets, p.heads = int(a.heads);
  p.d_k = int(a.d_k), p.d_v = int(a.d_v), p.dtype = a.is_f32 ? Dtype::f32 : Dtype::bf16;
  p.scale = float(a.scale), p.beta = a.beta, p.log_decay = a.log_decay, p.path = Path(a.path);
  return p;
}

}  // namespace

extern "C" int delta_forward_pass(const DeltaArguments* a, cudaStream_t stream) {
  return guarded([&] {
    delta_rule_forward(shape_of(*a), a->q, a->k, a->v, a->initial_state, a->o, a->final_state, a->kept,
                       a->backward_follows != 0, stream);
  });
}

extern "C" int delta_backward_pass(const DeltaArguments* a, cudaStream_t stream) {
  return guarded([&] {
    delta_rule_backward(shape_of(*a), a->q, a->k, a->v, a->initial_state, a->d_o, a->d_final_state, a->kept,
                        {a->d_q, a->d_k_rows, a->d_v_rows, a->d_beta, a->d_log_decay, a->d_initial_state},
                        a->workspace, stream);
  });
}

extern "C" int64_t delta_kept(const DeltaArguments* a) {
  return delta_rule_kept(shape_of(*a), a->backward_follows != 0);
}
extern "C" int64_t delta_workspace(const DeltaArguments* a) { return delta_rule_workspace(shape_of(*a)); }
