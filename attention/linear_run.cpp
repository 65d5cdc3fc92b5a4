#include "attention/linear_run.h"

#include "attention/scan_kernel.h"
#include "attention/segment_run.h"
#include "autograd/flops.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/planned_device.h"

namespace weft {
namespace {

struct LinearSizes {
  double scale;
  DocumentBounds bounds;
  bool ends;  // the states behind the segments are an output
  bool wide_gradients;
};

// As kernels read it. A fixed decay is a row that stands for all: kernels then read it once, and cut long
// documents knowing that nobody wants its gradient.
Tensor gate_values(const Variable& g) {
  if (!g.defined()) return {};
  const Tensor& x = g.value();
  if (x.rank() == 2 && x.repeats() && x.dim(0) > 0 && !g.differentiable())
    return x.rows(0, 1).reshape({x.dim(1)});
  return x.contiguous();
}

// Of both matrix products of a state, and of those inside chunks.
void count_forwards(const Tensor& q, const Tensor& v, double forwards) {
  const auto dk = static_cast<double>(q.dim(2)), dv = static_cast<double>(v.dim(2));
  count_flops(forwards * static_cast<double>(q.dim(0) * q.dim(1)) * (4 * dk * dv + 64 * (dk + dv)));
}

void linear_backward(Backward& b, const LinearSizes& s) {
  const LinearInputs x{b.saved(0), b.saved(1), b.saved(2), b.saved(3),      b.saved(4),
                       b.saved(5), s.bounds,   s.scale,    s.wide_gradients};
  const Tensor& kept = b.saved(6);
  const Device device = x.q.device();
  const Tensor d_o = b.grad(0).contiguous();
  const Tensor d_final_state = s.ends && b.has_grad(1) ? b.grad(1).contiguous() : Tensor();
  const Tensor like = s.wide_gradients ? empty({0}, wide_of(x.q.dtype()), device) : x.q;
  LinearGradients d{b.room(0, like), b.room(1, like), b.room(2, x.v), {}, {}};
  if (x.g.defined() && b.wants(3)) d.g = empty_like(x.g);
  if (x.initial_state.defined()) d.initial_state = empty_like(x.initial_state);
  if (x.q.dim(0) > 0) {
    RunBuffers buffers;
    ON_DEVICE(computed_on(device), linear_run_buffers(buffers, x, true));
    const Tensor workspace = empty({buffers.backward}, wide_of(x.q.dtype()), device);
    count_forwards(x.q, x.v, 2);
    ON_DEVICE(device, linear_run_backward(d, workspace, x, kept, d_o, d_final_state));
  } else if (d.initial_state.defined()) {
    state_or_zero(d.initial_state, d_final_state);
  }
  b.add(0, d.q);
  b.add(1, d.k);
  b.add(2, d.v);
  int next = 3;
  if (d.g.defined()) b.add(next, d.g);
  if (x.g.defined()) ++next;
  if (d.initial_state.defined()) b.add(next, d.initial_state);
}

}  // namespace

LinearRun linear_run(const Variable& q, const Variable& k, const Variable& v, const Variable& gate,
                     const Variable& initial_state, double scale, const Layout& layout,
                     bool want_final_state) {
  CHECK(q.rank() == 3 && k.shape() == q.shape() && v.rank() == 3 && v.dim(0) == q.dim(0) &&
            v.dim(1) == q.dim(1) && k.dtype() == q.dtype(),
        "linear_run: q ", q.shape(), ", k ", k.shape(), ", v ", v.shape());
  const Shape one_a_head{q.dim(0), q.dim(1)};
  CHECK(!gate.defined() || gate.shape() == one_a_head || gate.shape() == q.shape(), "linear_run: q ",
        q.shape(), ", g ", gate.shape());
  const Dtype wide = wide_of(v.dtype());
  const bool wide_gradients = q.dtype() != v.dtype();
  CHECK(!wide_gradients || (q.dtype() == wide && !(gate.defined() && gate.rank() == 3)), "linear_run: q ",
        name_of(q.dtype()), " beside v ", name_of(v.dtype()));
  const Variable g = gate.defined() ? cast(gate, wide) : gate;
  const LinearSizes sizes{scale, bounds_of(layout), want_final_state, wide_gradients};
  const Shape states{sizes.bounds.documents, q.dim(1), q.dim(2), v.dim(2)};
  CHECK(!initial_state.defined() || (initial_state.shape() == states && initial_state.dtype() == wide),
        "linear_run: states ", states, " in ", name_of(wide), ", initial_state ", initial_state.shape(),
        " in ", name_of(initial_state.dtype()));
  const Device device = q.device();
  const auto read = [&](const Variable& each) {
    return wide_gradients ? each.value().to(v.dtype()) : each.value();
  };
  const LinearInputs x{read(q),
                       read(k),
                       v.value(),
                       gate_values(g),
                       initial_state.defined() ? initial_state.value().contiguous() : Tensor(),
                       segment_offsets(layout, q.dim(0), device),
                       sizes.bounds,
                       scale,
                       wide_gradients};
  std::vector<Variable> inputs{q, k, v};
  if (g.defined()) inputs.push_back(g);
  if (initial_state.defined()) inputs.push_back(initial_state);
  const Tensor o = empty(v.shape(), v.dtype(), device);
  const Tensor final_state = want_final_state ? empty(states, wide, device) : Tensor();
  Tensor kept;
  if (q.dim(0) > 0) {
    RunBuffers buffers;
    ON_DEVICE(computed_on(device), linear_run_buffers(buffers, x, followed(inputs)));
    kept = empty({buffers.kept}, wide, device);
    const Tensor workspace = empty({buffers.forward}, wide, device);
    count_forwards(q, v, 1);
    ON_DEVICE(device, linear_run_forward(o, final_state, kept, workspace, x));
  } else if (want_final_state) {
    state_or_zero(final_state, x.initial_state);
  }
  std::vector<Tensor> outputs{o};
  if (want_final_state) outputs.push_back(final_state);
  const auto recorded =
      record_many("linear_run", inputs, outputs, save(x.q, x.k, x.v, x.g, x.initial_state, x.offsets, kept),
                  sizes, linear_backward);
  return {recorded[0], want_final_state ? recorded[1] : Variable()};
}

void use_linear_run(Scan& scan, double scale, bool gated, int64_t key, int64_t value, Dtype dtype,
                    bool narrow_keys) {
  use_recurrent_step(scan, scale, key, -1, gated ? 3 : -1);
  scan.kernel.serves = [=](Device where) { return has_scan_kernel(where, dtype, key, value); };
  scan.kernel.run = [=, identity = scan.identity](const Block& b, const Layout& layout, const State& start,
                                                  bool want_end) {
    const Dtype narrow = b.x[2].dtype(), of_keys = b.x[0].dtype() == narrow ? narrow : wide_of(narrow);
    const LinearRun r = linear_run(cast(b.x[0], of_keys), cast(b.x[1], of_keys),
                                   cast(b.x[2], narrow_keys ? narrow : of_keys), gated ? b.x[3] : Variable(),
                                   start.empty() ? Variable() : start[1], scale, layout, want_end);
    return run_result(cast(r.o, narrow), r.final_state, identity);
  };
}

}  // namespace weft
