#include "attention/linear_run.h"

#include "attention/scan_kernel.h"
#include "autograd/flops.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#ifdef WEFT_CUDA
#include "attention/kernel_arguments.h"
#include "autograd/cuda/runtime.h"
#endif

namespace weft {

#ifdef WEFT_CUDA

namespace {

struct Sizes {
  float scale;
  int documents;
  int64_t longest;
  bool ends;  // the states behind the segments are an output
};

// offsets (documents + 1) i32; g f32, (H) if it is the same for all tokens, or undefined
cuda::LinearAttention problem(const Sizes& s, const Tensor& q, const Tensor& v, const Tensor& offsets,
                              const Tensor& g) {
  return {.tokens = q.dim(0),
          .documents = s.documents,
          .offsets = static_cast<const int*>(offsets.raw()),
          .longest = s.longest,
          .heads = static_cast<int>(q.dim(1)),
          .d_k = static_cast<int>(q.dim(2)),
          .d_v = static_cast<int>(v.dim(2)),
          .dtype = q.dtype(),
          .scale = s.scale,
          .log_decay = floats(g),
          .gate = !g.defined() || g.rank() == 1 ? cuda::Gate::fixed
                  : g.rank() == 2               ? cuda::Gate::head
                                                : cuda::Gate::channel};
}

// As kernels read it. A fixed decay is a row that stands for all: kernels then read it once, and cut long
// documents knowing that nobody wants its gradient.
Tensor gate_values(const Variable& g) {
  if (!g.defined()) return {};
  const Tensor& x = g.value();
  if (x.rank() == 2 && x.repeats() && x.dim(0) > 0 && !g.differentiable())
    return x.rows(0, 1).reshape({x.dim(1)});
  return x.contiguous();
}

// Undefined where none is needed.
Tensor scratch(int64_t bytes, Device device) {
  return bytes > 0 ? empty({bytes / 4}, Dtype::f32, device) : Tensor();
}

// Of both matrix products of a state, and of those inside chunks of 64 tokens.
void count_forwards(const Tensor& q, const Tensor& v, double forwards) {
  const auto dk = static_cast<double>(q.dim(2)), dv = static_cast<double>(v.dim(2));
  count_flops(forwards * static_cast<double>(q.dim(0) * q.dim(1)) * (4 * dk * dv + 64 * (dk + dv)));
}

void backward(Backward& b, const Sizes& s) {
  const Tensor &q = b.saved(0), &k = b.saved(1), &v = b.saved(2), &g = b.saved(3), &start = b.saved(4),
               &offsets = b.saved(5), &kept = b.saved(6);
  const Device device = q.device();
  const cuda::LinearAttention shape = problem(s, q, v, offsets, g);
  const Tensor d_o = b.grad(0).contiguous();
  const Tensor d_end = s.ends && b.has_grad(1) ? b.grad(1).contiguous() : Tensor();
  const Tensor dq = b.room(0, q), dk = b.room(1, k), dv = b.room(2, v);
  const bool of_gate = g.defined() && b.wants(3);
  const Tensor workspace = scratch(cuda::linear_attention_workspace(shape), device);
  const Tensor dg = of_gate ? empty(g.shape(), Dtype::f32, device) : Tensor();
  Tensor d_start;
  if (start.defined()) d_start = empty_like(start);
  count_forwards(q, v, 2);
  if (device == Device::cuda)
    cuda::linear_attention_backward(
        shape, rows_of(q), rows_of(k), rows_of(v), floats(start), rows_of(d_o), floats(d_end),
        {written(dq), written(dk), written(dv), floats(d_start), floats(dg), floats(kept), floats(workspace)},
        cuda::stream());
  b.add(0, dq);
  b.add(1, dk);
  b.add(2, dv);
  int next = 3;
  if (of_gate) b.add(next, dg);
  if (g.defined()) ++next;
  if (start.defined()) b.add(next, d_start);
}

}  // namespace

LinearRun linear_run(const Variable& q, const Variable& k, const Variable& v, const Variable& gate,
                     const Variable& start, double scale, const Layout& layout, bool want_end) {
  CHECK(q.rank() == 3 && k.shape() == q.shape() && v.rank() == 3 && v.dim(1) == q.dim(1) &&
            v.dtype() == q.dtype() && k.dtype() == q.dtype(),
        "linear_run: q ", q.shape(), ", k ", k.shape(), ", v ", v.shape());
  const Shape one_a_head{q.dim(0), q.dim(1)};
  CHECK(!gate.defined() || gate.shape() == one_a_head || gate.shape() == q.shape(), "linear_run: q ",
        q.shape(), ", g ", gate.shape());
  const Variable g = gate.defined() ? cast(gate, Dtype::f32) : gate;
  const DocumentBounds bounds = bounds_of(layout);
  const Sizes sizes{static_cast<float>(scale), bounds.documents, bounds.longest, want_end};
  const Tensor offsets = segment_offsets(layout, q.dim(0), q.device());
  const Tensor dense_g = gate_values(g);
  const Tensor before = start.defined() ? start.value().contiguous() : Tensor();
  const Tensor o = empty(v.shape(), v.dtype(), v.device());
  const Tensor end =
      want_end ? empty({sizes.documents, q.dim(1), q.dim(2), v.dim(2)}, Dtype::f32, q.device()) : Tensor();
  Tensor kept;
  if (q.dim(0) > 0) {
    count_forwards(q, v, 1);
    const cuda::LinearAttention shape = problem(sizes, q, v, offsets, dense_g);
    kept = scratch(cuda::linear_attention_kept(shape), q.device());
    if (q.device() == Device::cuda)
      cuda::linear_attention_forward(shape, rows_of(q), rows_of(k), rows_of(v), floats(before), written(o),
                                     floats(end), floats(kept), cuda::stream());
  }
  std::vector<Variable> inputs{q, k, v};
  if (g.defined()) inputs.push_back(g);
  if (start.defined()) inputs.push_back(start);
  std::vector<Tensor> outputs{o};
  if (want_end) outputs.push_back(end);
  const auto recorded = record_many("linear_run", inputs, outputs,
                                    save(q, k, v, dense_g, before, offsets, kept), sizes, backward);
  return {recorded[0], want_end ? recorded[1] : Variable()};
}

void use_linear_run(Scan& scan, double scale, bool gated, int64_t key, int64_t value, Dtype dtype) {
  use_recurrent_step(scan, scale, key, -1, gated ? 3 : -1);
  scan.kernel.serves = [=](Device where) {
    return where == Device::cuda && dtype != Dtype::f64 && key <= 256 && value <= 256;
  };
  scan.kernel.run = [=, identity = scan.identity](const Block& b, const Layout& layout, const State& start,
                                                  bool want_end) {
    const Dtype narrow = b.x[2].dtype(),
                common = b.x[0].dtype() == narrow ? narrow : Dtype::f32;  // of features
    const LinearRun r = linear_run(cast(b.x[0], common), cast(b.x[1], common), cast(b.x[2], common),
                                   gated ? b.x[3] : Variable(), start.empty() ? Variable() : start[1], scale,
                                   layout, want_end);
    return ran(cast(r.o, narrow), r.end, identity);
  };
}

#else

LinearRun linear_run(const Variable&, const Variable&, const Variable&, const Variable&, const Variable&,
                     double, const Layout&, bool) {
  throw Error(Exit::internal, "this build has no kernel for linear attention");
}

void use_linear_run(Scan& scan, double scale, bool gated, int64_t key, int64_t, Dtype) {
  use_recurrent_step(scan, scale, key, -1, gated ? 3 : -1);
}

#endif

}  // namespace weft
