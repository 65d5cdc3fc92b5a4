#include "attention/delta_run.h"

#include "autograd/flops.h"
#include "autograd/ops/elementwise.h"
#ifdef WEFT_CUDA
#include "attention/kernel_arguments.h"
#include "attention/kernels/delta_rule.h"
#include "autograd/cuda/runtime.h"
#endif

namespace weft {

#ifdef WEFT_CUDA

bool has_delta_run(Device device, Dtype dtype, int64_t key_size, int64_t value_size) {
  return device == Device::cuda && (dtype == Dtype::bf16 || dtype == Dtype::f32) && key_size <= 256 &&
         value_size <= 256;
}

namespace {

struct Sizes {
  float scale;
  int documents;
  bool gated, ends;  // ends: the states behind the segments are an output
};

// beta and g f32, offsets (documents + 1) i32
cuda::DeltaRule problem(const Sizes& s, const Tensor& q, const Tensor& v, const Tensor& beta, const Tensor& g,
                        const Tensor& offsets) {
  return {.tokens = q.dim(0),
          .documents = s.documents,
          .offsets = static_cast<const int*>(offsets.raw()),
          .heads = static_cast<int>(q.dim(1)),
          .d_k = static_cast<int>(q.dim(2)),
          .d_v = static_cast<int>(v.dim(2)),
          .dtype = q.dtype(),
          .scale = s.scale,
          .beta = floats(beta),
          .log_decay = floats(g)};
}

Tensor bytes_on(Device device, int64_t bytes) { return empty({bytes / 4}, Dtype::f32, device); }

// Of the matrix products over states, and of those inside chunks of 64 tokens.
void count_matmuls(const Tensor& q, const Tensor& v, double states, double in_chunk) {
  const auto dk = static_cast<double>(q.dim(2)), dv = static_cast<double>(v.dim(2));
  count_flops(static_cast<double>(q.dim(0) * q.dim(1)) * (2 * states * dk * dv + 64 * in_chunk * (dk + dv)));
}

void backward(Backward& b, const Sizes& s) {
  const Tensor &q = b.saved(0), &k = b.saved(1), &v = b.saved(2), &beta = b.saved(3), &g = b.saved(4),
               &start = b.saved(5), &offsets = b.saved(6), &kept = b.saved(7);
  const Device device = q.device();
  const cuda::DeltaRule shape = problem(s, q, v, beta, g, offsets);
  const Tensor d_o = b.grad(0).contiguous();
  const Tensor d_end = s.ends && b.has_grad(1) ? b.grad(1).contiguous() : Tensor();
  const Tensor dq = empty(q.shape(), q.dtype(), device), dk = empty(k.shape(), k.dtype(), device),
               dv = empty(v.shape(), v.dtype(), device), dbeta = empty(beta.shape(), Dtype::f32, device);
  const Tensor dg = s.gated ? empty(g.shape(), Dtype::f32, device) : Tensor();
  const Tensor d_start = start.defined() ? empty_like(start) : Tensor();
  if (q.dim(0) > 0) {
    const Tensor workspace = bytes_on(device, cuda::delta_rule_workspace(shape));
    count_matmuls(q, v, 6, 5);
    if (device == Device::cuda)
      cuda::delta_rule_backward(
          shape, rows_of(q), rows_of(k), rows_of(v), floats(start), rows_of(d_o), floats(d_end), kept.raw(),
          {written(dq), written(dk), written(dv), floats(dbeta), floats(dg), floats(d_start)},
          workspace.raw(), cuda::stream());
  }
  b.add(0, dq);
  b.add(1, dk);
  b.add(2, dv);
  b.add(3, dbeta);
  int next = 4;
  if (s.gated) b.add(next++, dg);
  if (start.defined()) b.add(next, d_start);
}

}  // namespace

DeltaRun delta_run(const Variable& q_in, const Variable& k_in, const Variable& v_in, const Variable& beta_in,
                   const Variable& g_in, const Variable& start, double scale, const Layout& layout,
                   bool want_end) {
  CHECK(q_in.rank() == 3 && k_in.shape() == q_in.shape() && v_in.rank() == 3 && v_in.dim(1) == q_in.dim(1) &&
            v_in.dtype() == q_in.dtype() && k_in.dtype() == q_in.dtype(),
        "delta_run: q ", q_in.shape(), ", k ", k_in.shape(), ", v ", v_in.shape());
  const Variable beta = cast(beta_in, Dtype::f32), g = g_in.defined() ? cast(g_in, Dtype::f32) : g_in;
  const Sizes sizes{static_cast<float>(scale), bounds_of(layout).documents, g.defined(), want_end};
  // Dense: tiles are read 16 bytes at a time.
  const Tensor q = q_in.value().contiguous(), k = k_in.value().contiguous(), v = v_in.value().contiguous();
  const Tensor offsets = segment_offsets(layout, q.dim(0), q.device()),
               dense_beta = beta.value().contiguous(),
               dense_g = g.defined() ? g.value().contiguous() : Tensor(),
               before = start.defined() ? start.value().contiguous() : Tensor();

  std::vector<Variable> inputs{q_in, k_in, v_in, beta};
  if (g.defined()) inputs.push_back(g);
  if (start.defined()) inputs.push_back(start);
  bool follows = false;  // a backward pass
  for (const Variable& x : inputs) follows |= Tape::current() != nullptr && x.differentiable();

  const Tensor o = empty(v.shape(), v.dtype(), v.device());
  const Tensor end =
      want_end ? empty({sizes.documents, q.dim(1), q.dim(2), v.dim(2)}, Dtype::f32, q.device()) : Tensor();
  Tensor kept;
  if (q.dim(0) > 0) {
    const cuda::DeltaRule shape = problem(sizes, q, v, dense_beta, dense_g, offsets);
    kept = bytes_on(q.device(), cuda::delta_rule_kept(shape, follows));
    count_matmuls(q, v, 3, 2);
    if (q.device() == Device::cuda)
      cuda::delta_rule_forward(shape, rows_of(q), rows_of(k), rows_of(v), floats(before), written(o),
                               floats(end), kept.raw(), follows, cuda::stream());
  }
  std::vector<Tensor> outputs{o};
  if (want_end) outputs.push_back(end);
  const auto recorded =
      record_many("delta_run", inputs, outputs, save(q, k, v, dense_beta, dense_g, before, offsets, kept),
                  sizes, backward);
  return {recorded[0], want_end ? recorded[1] : Variable()};
}

#else

bool has_delta_run(Device, Dtype, int64_t, int64_t) { return false; }

DeltaRun delta_run(const Variable&, const Variable&, const Variable&, const Variable&, const Variable&,
                   const Variable&, double, const Layout&, bool) {
  throw Error(Exit::internal, "this build has no kernel for the delta rule");
}

#endif

}  // namespace weft
