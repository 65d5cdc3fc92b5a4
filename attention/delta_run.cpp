#include "attention/delta_run.h"

#include "attention/segment_run.h"
#include "autograd/flops.h"
#include "autograd/ops/elementwise.h"
#include "autograd/planned_device.h"

namespace weft {
namespace {

struct DeltaSizes {
  double scale;
  int documents;
  bool gated, ends;  // ends: the states behind the segments are an output
};

// Kernels of a GPU read 16 bytes at a time.
Tensor as_kernels_read(const Tensor& x) {
  return computed_on(x.device()) == Device::cpu ? x : x.contiguous();
}

// Of the matrix products over states, and of those inside chunks of 64 tokens.
void count_delta_matmuls(const DeltaInputs& x, double states, double in_chunk) {
  const auto dk = static_cast<double>(x.q.dim(2)), dv = static_cast<double>(x.v.dim(2));
  count_flops(static_cast<double>(x.q.dim(0) * x.q.dim(1)) *
              (2 * states * dk * dv + 64 * in_chunk * (dk + dv)));
}

void delta_backward(Backward& b, const DeltaSizes& s) {
  const DeltaInputs x{b.saved(0), b.saved(1), b.saved(2), b.saved(3), b.saved(4),
                      b.saved(5), b.saved(6), s.scale,    s.documents};
  const Tensor& kept = b.saved(7);
  const Device device = x.q.device();
  const Tensor d_o = as_kernels_read(b.grad(0));
  const Tensor d_final_state = s.ends && b.has_grad(1) ? b.grad(1).contiguous() : Tensor();
  const auto place = [&](int i, const Tensor& like) {
    return computed_on(device) == Device::cpu ? b.room(i, like) : empty(like.shape(), like.dtype(), device);
  };
  const DeltaGradients d{place(0, x.q),
                         place(1, x.k),
                         place(2, x.v),
                         empty_like(x.beta),
                         s.gated ? empty_like(x.g) : Tensor(),
                         x.initial_state.defined() ? empty_like(x.initial_state) : Tensor()};
  RunBuffers buffers;
  ON_DEVICE(computed_on(device), delta_run_buffers(buffers, x, true));
  const Tensor workspace = empty({buffers.backward}, x.beta.dtype(), device);
  count_delta_matmuls(x, 6, 5);
  if (x.q.dim(0) > 0)
    ON_DEVICE(device, delta_run_backward(d, workspace, x, kept, d_o, d_final_state));
  else if (d.initial_state.defined())
    state_or_zero(d.initial_state, d_final_state);
  b.add(0, d.q);
  b.add(1, d.k);
  b.add(2, d.v);
  b.add(3, d.beta);
  int next = 4;
  if (s.gated) b.add(next++, d.g);
  if (x.initial_state.defined()) b.add(next, d.initial_state);
}

}  // namespace

DeltaRun delta_run(const Variable& q, const Variable& k, const Variable& v, const Variable& beta_in,
                   const Variable& g_in, const Variable& initial_state, double scale, const Layout& layout,
                   bool want_final_state) {
  CHECK(q.rank() == 3 && k.shape() == q.shape() && v.rank() == 3 && v.dim(1) == q.dim(1) &&
            v.dtype() == q.dtype() && k.dtype() == q.dtype(),
        "delta_run: q ", q.shape(), ", k ", k.shape(), ", v ", v.shape());
  const Shape numbers{q.dim(0), q.dim(1)};
  CHECK(v.dim(0) == q.dim(0) && beta_in.shape() == numbers && (!g_in.defined() || g_in.shape() == numbers),
        "delta_run: q ", q.shape(), ", v ", v.shape(), ", beta ", beta_in.shape(), ", g ",
        g_in.defined() ? g_in.shape() : Shape{});
  const Dtype wide = wide_of(q.dtype());
  const Device device = q.device();
  const Variable beta = cast(beta_in, wide), g = g_in.defined() ? cast(g_in, wide) : g_in;
  const DeltaSizes sizes{scale, bounds_of(layout).documents, g.defined(), want_final_state};
  const Shape states{sizes.documents, q.dim(1), q.dim(2), v.dim(2)};
  CHECK(!initial_state.defined() || (initial_state.shape() == states && initial_state.dtype() == wide),
        "delta_run: states ", states, " in ", name_of(wide), ", initial_state ", initial_state.shape(),
        " in ", name_of(initial_state.dtype()));
  const DeltaInputs x{as_kernels_read(q),
                      as_kernels_read(k),
                      as_kernels_read(v),
                      beta.value().contiguous(),
                      g.defined() ? g.value().contiguous() : Tensor(),
                      initial_state.defined() ? initial_state.value().contiguous() : Tensor(),
                      segment_offsets(layout, q.dim(0), device),
                      scale,
                      sizes.documents};

  std::vector<Variable> inputs{q, k, v, beta};
  if (g.defined()) inputs.push_back(g);
  if (initial_state.defined()) inputs.push_back(initial_state);
  const bool follows = followed(inputs);

  const Tensor o = empty(v.shape(), v.dtype(), device);
  const Tensor final_state = want_final_state ? empty(states, wide, device) : Tensor();
  RunBuffers buffers;
  ON_DEVICE(computed_on(device), delta_run_buffers(buffers, x, follows));
  const Tensor kept = empty({buffers.kept}, wide, device);
  count_delta_matmuls(x, 3, 2);
  if (x.q.dim(0) > 0)
    ON_DEVICE(device, delta_run_forward(o, final_state, kept, x, follows));
  else if (want_final_state)
    state_or_zero(final_state, x.initial_state);

  std::vector<Tensor> outputs{o};
  if (want_final_state) outputs.push_back(final_state);
  const auto recorded =
      record_many("delta_run", inputs, outputs,
                  save(x.q, x.k, x.v, x.beta, x.g, x.initial_state, x.offsets, kept), sizes, delta_backward);
  return {recorded[0], want_final_state ? recorded[1] : Variable()};
}

}  // namespace weft
