#include "attention/ema_run.h"

#ifdef WEFT_CUDA
#include <optional>

#include "attention/kernel_arguments.h"
#include "attention/kernels/ema.h"
#include "autograd/cuda/runtime.h"
#include "autograd/flops.h"
#endif

namespace weft {

#ifdef WEFT_CUDA

bool has_ema_run(Device device, Dtype dtype, int64_t size) {
  return device == Device::cuda && (dtype == Dtype::bf16 || dtype == Dtype::f32) &&
         size <= cuda::kMostEmaStates;
}

namespace {

struct Spans {
  int documents, spans;
  bool cut, matrices;
  bool ends;  // the states behind the segments are an output
};

cuda::Ema problem(const Spans& s, const Tensor& x, const Tensor& in, const Tensor& out, const Tensor& decay,
                  const Tensor& plan) {
  return {.channels = static_cast<int>(in.dim(0)),
          .size = static_cast<int>(in.dim(1)),
          .dtype = x.dtype(),
          .in = floats(in),
          .out = floats(out),
          .decay = floats(decay),
          .documents = s.documents,
          .spans = s.spans,
          .cut = s.cut,
          .matrices = s.matrices,
          .plan = static_cast<const int*>(plan.raw())};
}

Tensor scratch(int64_t size, Device device) {
  return size > 0 ? empty({size}, Dtype::f32, device) : Tensor();
}

// A multiply and an add for the state and for the output.
void count(const Tensor& x, const Tensor& in, int per_state) {
  count_flops(static_cast<double>(2 * per_state * x.numel()) * static_cast<double>(in.dim(1)));
}

void backward(Backward& b, const Spans& s) {
  const Tensor &x = b.saved(0), &in = b.saved(1), &out = b.saved(2), &decay = b.saved(3),
               &initial_state = b.saved(4), &plan = b.saved(5);
  const Device device = x.device();
  const cuda::Ema shape = problem(s, x, in, out, decay, plan);
  const Tensor dy = b.grad(0);
  const Tensor d_final_state = s.ends && b.has_grad(1) ? b.grad(1).contiguous() : Tensor();
  const Tensor dx = empty(x.shape(), x.dtype(), device);
  const Tensor d_in = empty_like(in), d_out = empty_like(out), d_decay = empty_like(decay);
  const Tensor d_initial_state = initial_state.defined() ? empty_like(initial_state) : Tensor();
  const Tensor workspace = scratch(cuda::ema_backward_workspace(shape), device);
  count(x, in, 5);
  if (device == Device::cuda)
    cuda::ema_backward(shape, rows_of(x), rows_of(dy), floats(initial_state), floats(d_final_state),
                       {dx.raw(), floats(d_in), floats(d_out), floats(d_decay), floats(d_initial_state)},
                       floats(workspace), cuda::stream());
  b.add(0, dx);
  b.add(1, d_in);
  b.add(2, d_out);
  b.add(3, d_decay);
  if (initial_state.defined()) b.add(4, d_initial_state);
}

struct PlanOnDevice {
  Spans spans;
  Tensor values;
};

PlanOnDevice plan_of(const Segments& segments, int64_t channels, int64_t size, bool matrices, Device device) {
  std::vector<int64_t> lengths;
  for (const Segment& s : segments) lengths.push_back(s.size());
  const cuda::EmaPlan plan = cuda::plan_ema(lengths, channels, size, matrices);
  return {{plan.documents, plan.spans, plan.cut, plan.matrices, false}, from_ints(plan.values, device)};
}

// Layer after layer asks for the same one, and a copy to a GPU is as long as a small kernel. Not within a
// training step or evaluation (BoundsScope): what it kept beyond its end would drop the recordings of steps.
PlanOnDevice kept_plan(const Layout& layout, int64_t channels, int64_t size, bool matrices, Device device) {
  if (offsets_of(layout).defined()) return plan_of(layout.segments, channels, size, matrices, device);
  struct Known {
    Segments segments;
    int64_t channels, size;
    bool matrices;
    PlanOnDevice plan;
  };
  thread_local std::optional<Known> last;
  if (!last || last->channels != channels || last->size != size || last->matrices != matrices ||
      last->plan.values.device() != device || last->segments != layout.segments)
    last = {layout.segments, channels, size, matrices,
            plan_of(layout.segments, channels, size, matrices, device)};
  return last->plan;
}

}  // namespace

EmaRun ema_run(const Variable& x, const Variable& in, const Variable& out, const Variable& decay,
               const Variable& initial_state, const Layout& layout, bool want_final_state) {
  CHECK(x.rank() == 2 && in.rank() == 2 && in.dim(0) == x.dim(1) && out.shape() == in.shape() &&
            decay.shape() == in.shape() && in.dtype() == Dtype::f32,
        "ema_run: x ", x.shape(), ", in ", in.shape(), ", out ", out.shape(), ", decay ", decay.shape());
  const Device device = x.device();
  int64_t tokens = 0;
  for (const Segment& s : layout.segments) tokens += s.size();
  CHECK(tokens == x.dim(0), "ema_run: ", x.dim(0), " tokens in segments of ", tokens);
  const bool matrices =
      x.dtype() == Dtype::bf16 && x.dim(1) % 8 == 0 && !initial_state.defined() && !want_final_state;
  auto [spans, on_device] = kept_plan(layout, x.dim(1), in.dim(1), matrices, device);
  spans.ends = want_final_state;

  const Tensor dense_in = in.value().contiguous(), dense_out = out.value().contiguous(),
               dense_decay = decay.value().contiguous();
  const Tensor before = initial_state.defined() ? initial_state.value().contiguous() : Tensor();
  const Tensor y = empty(x.shape(), x.dtype(), device);
  const Shape states{static_cast<int64_t>(layout.segments.size()), in.dim(0), in.dim(1)};
  const Tensor final_state = want_final_state ? empty(states, Dtype::f32, device) : Tensor();
  const cuda::Ema shape = problem(spans, x.value(), dense_in, dense_out, dense_decay, on_device);
  const Tensor workspace = scratch(cuda::ema_forward_workspace(shape), device);
  count(x.value(), in.value(), 2);
  if (device == Device::cuda)
    cuda::ema_forward(shape, rows_of(x.value()), floats(before), y.raw(), floats(final_state),
                      floats(workspace), cuda::stream());

  std::vector<Variable> inputs{x, in, out, decay};
  if (initial_state.defined()) inputs.push_back(initial_state);
  std::vector<Tensor> outputs{y};
  if (want_final_state) outputs.push_back(final_state);
  const auto recorded =
      record_many("ema_run", inputs, outputs, save(x, dense_in, dense_out, dense_decay, before, on_device),
                  spans, backward);
  return {recorded[0], want_final_state ? recorded[1] : Variable()};
}

#else

bool has_ema_run(Device, Dtype, int64_t) { return false; }

EmaRun ema_run(const Variable&, const Variable&, const Variable&, const Variable&, const Variable&,
               const Layout&, bool) {
  throw Error(Exit::internal, "this build has no kernel for moving averages");
}

#endif

}  // namespace weft
