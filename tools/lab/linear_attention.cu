// The launchers of attention/kernels/linear_attention.h under C names, for linear_attention.py.

#include "attention/kernels/linear_attention.h"

#include "attention/kernels/segments.h"
#include "tools/lab/guarded.h"

using namespace weft;
using namespace weft::cuda;

// As in linear_attention.py.
struct Arguments {
  int64_t tokens, documents, heads, d_k, d_v, is_f32, gate, path, longest, segment, wide_gradients;
  double scale;
  const int* offsets;
  const float* log_decay;
  Rows q, k, v, d_o;
  MutableRows o, d_q, d_k_rows, d_v_rows;
  const float *initial_state, *d_final_state;
  float *final_state, *d_initial_state, *d_log_decay, *kept, *workspace;
};

namespace {

LinearAttention shape_of(const Arguments& a) {
  LinearAttention p;
  p.tokens = a.tokens, p.documents = int(a.documents), p.offsets = a.offsets, p.heads = int(a.heads);
  p.d_k = int(a.d_k), p.d_v = int(a.d_v), p.dtype = a.is_f32 ? Dtype::f32 : Dtype::bf16,
  p.scale = float(a.scale);
  p.log_decay = a.log_decay, p.gate = Gate(a.gate), p.path = Path(a.path);
  p.longest = a.longest, p.segment = a.segment, p.wide_gradients = a.wide_gradients != 0;
  return p;
}

}  // namespace

extern "C" int forward(const Arguments* a, cudaStream_t stream) {
  return guarded([&] {
    linear_attention_forward(shape_of(*a), a->q, a->k, a->v, a->initial_state, a->o, a->final_state, a->kept,
                             stream);
  });
}

extern "C" int backward(const Arguments* a, cudaStream_t stream) {
  return guarded([&] {
    linear_attention_backward(
        shape_of(*a), a->q, a->k, a->v, a->initial_state, a->d_o, a->d_final_state,
        {a->d_q, a->d_k_rows, a->d_v_rows, a->d_initial_state, a->d_log_decay, a->kept, a->workspace},
        stream);
  });
}

extern "C" int64_t kept(const Arguments* a) { return linear_attention_kept(shape_of(*a)); }
extern "C" int64_t workspace(const Arguments* a) { return linear_attention_workspace(shape_of(*a)); }
// Tokens of the segments that documents are cut into, 0: none.
extern "C" int64_t cut_length(const Arguments* a) { return cut_of(shape_of(*a)).length; }
