// The launchers of attention/kernels/ema.h under C names, for ema.py.

#include "attention/kernels/ema.h"

#include <cstring>

#include "tools/lab/guarded.h"

using namespace weft;
using namespace weft::cuda;

// As in ema.py.
struct EmaArguments {
  int64_t channels, size, is_f32, documents, spans, cut, matrices;
  const int* plan;
  const float *in, *out, *decay, *start, *d_end;
  Rows x, dy;
  void *y, *dx;
  float *end, *d_in, *d_out, *d_decay, *d_start, *workspace;
};

namespace {

Ema shape_of(const EmaArguments& a) {
  return {.channels = int(a.channels),
          .size = int(a.size),
          .dtype = a.is_f32 ? Dtype::f32 : Dtype::bf16,
          .in = a.in,
          .out = a.out,
          .decay = a.decay,
          .documents = int(a.documents),
          .spans = int(a.spans),
          .cut = a.cut != 0,
          .matrices = a.matrices != 0,
          .plan = a.plan};
}

}  // namespace

// The plan for documents of these lengths; `most` tokens a span, 0: as plan_ema chooses. matrices: 0 never, 1
// as plan_ema chooses, 2 always. Returns how many values it has, and puts documents, spans, cut, matrices and
// these into `to`, if that is not null.
extern "C" int64_t ema_plan(const int64_t* lengths, int64_t count, int64_t channels, int64_t size,
                            int64_t most, int64_t matrices, int* to) {
  const std::vector<int64_t> all(lengths, lengths + count);
  const EmaPlan plan = most > 0        ? ema_spans(all, most, matrices != 0)
                       : matrices == 2 ? best_ema_plan(all, channels, size, true)
                                       : plan_ema(all, channels, size, matrices != 0);
  if (to != nullptr) {
    to[0] = plan.documents, to[1] = plan.spans, to[2] = plan.cut, to[3] = plan.matrices;
    std::memcpy(to + 4, plan.values.data(), plan.values.size() * sizeof(int));
  }
  return int64_t(plan.values.size());
}

// In floats.
extern "C" int64_t ema_workspace(const EmaArguments* a) {
  return std::max(ema_forward_workspace(shape_of(*a)), ema_backward_workspace(shape_of(*a)));
}

extern "C" int ema_run_forward(const EmaArguments* a, cudaStream_t stream) {
  return guarded([&] { ema_forward(shape_of(*a), a->x, a->start, a->y, a->end, a->workspace, stream); });
}

extern "C" int ema_run_backward(const EmaArguments* a, cudaStream_t stream) {
  return guarded([&] {
    ema_backward(shape_of(*a), a->x, a->dy, a->start, a->d_end,
                 {a->dx, a->d_in, a->d_out, a->d_decay, a->d_start}, a->workspace, stream);
  });
}
