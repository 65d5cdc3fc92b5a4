// Rows of recurrences as a layer calls them, from the tape to the gradients: linear attention with its
// decays, the gated delta rule, Mega's moving average. tools/peers/recurrences.py has the same rows.

#include "attention/ema.h"
#include "attention/registry.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "tools/bench_gpu_run.h"

namespace weft {
namespace {

// Values as a layer makes them: gates in f32, memories of some twenty tokens, keys of length 1 where asked.
Tensor random_input(const Input& input, const Shape& shape, uint32_t stream) {
  const bool gate = input.domain == Domain::log_decay || input.domain == Domain::unit;
  const Variable x = GpuRun::noise(shape, gate ? Dtype::f32 : Dtype::bf16, stream);
  switch (input.domain) {
    case Domain::log_decay: return scale(log_sigmoid(x), 1.0 / 16).value();
    case Domain::unit: return sigmoid(x).value();
    case Domain::direction: return multiply(x, reciprocal(sqrt(sum(square(x), -1, true)))).value();
    default: return x.value();
  }
}

struct Sizes {
  int64_t batch, length, heads, size;
};

// A row forward and one of both passes. `in`: its inputs, the first `learned` of which want gradients.
void both_passes(GpuRun& run, const std::string& name, const std::string& shape, const Layout& layout,
                 const std::vector<Tensor>& in, size_t learned, double again,
                 const std::function<Variable(const Block&, Crossing&)>& forward) {
  Tensor d_o;
  const auto once = [&](bool backward) {
    Tape tape;
    Block block{{}, layout.position, layout.document};
    for (size_t i = 0; i < in.size(); ++i)
      block.x.push_back(backward && i < learned ? tape.input(in[i]) : Variable(in[i]));
    LocalCrossing cross(layout);
    const Variable o = forward(block, cross);
    if (!d_o.defined()) d_o = GpuRun::noise(o.shape(), o.dtype(), 99);
    if (backward) tape.backward(o, d_o);
  };
  once(false);
  double read = 0, gradients = 0;
  for (size_t i = 0; i < in.size(); ++i) {
    read += static_cast<double>(in[i].bytes());
    if (i < learned) gradients += static_cast<double>(in[i].bytes());
  }
  for (const bool backward : {false, true}) {
    BenchRow row{.name = name + (backward ? " forward+backward" : " forward"), .shape = shape};
    row.tokens = layout.tokens();
    row.bytes = read + static_cast<double>(d_o.bytes());
    if (backward) row.bytes += again * row.bytes + gradients;
    run.device(row, {}, [&](int64_t) { once(backward); });
  }
}

// Backward takes two passes, one from either end; only the second reads q.
void recurrence(GpuRun& run, const std::string& id, Sizes s) {
  s.length = run.sized(s.length);
  s.heads = run.sized(s.heads, 1);
  const Dimensions dims{
      .heads = s.heads, .kv_heads = s.heads, .key = s.size, .value = s.size, .width = s.heads * s.size};
  ParameterStore store(Dtype::bf16);
  const auto mechanism = find_mechanism(id).make({}, dims, {store, ""});
  store.commit();
  const Layout layout = whole_documents(std::vector<int64_t>(static_cast<size_t>(s.batch), s.length));
  std::vector<Tensor> in;
  size_t learned = 0;
  for (const Input& input : mechanism->inputs()) {
    const bool fixed = !mechanism->fixed_input(input.name).empty();
    in.push_back(fixed ? fixed_rows(*mechanism, input, layout.tokens(), Dtype::f32, default_device())
                       : random_input(input, input_shape(input, dims, layout.tokens()),
                                      static_cast<uint32_t>(in.size())));
    if (!fixed) learned = in.size();
  }
  const auto all = static_cast<double>(in.size() + 1);
  both_passes(run, id, text("B", s.batch, " T", s.length, " H", s.heads, " D", s.size), layout, in, learned,
              (2 * all - 1) / all,
              [&](const Block& block, Crossing& cross) { return mechanism->forward(block, cross); });
}

// The average's own parameters are too few to count.
void average(GpuRun& run, int64_t batch, int64_t length, int64_t channels, int64_t states) {
  length = run.sized(length);
  channels = run.sized(channels);
  ParameterStore store(Dtype::bf16);
  const DampedEma ema(channels, states, {store, ""});
  store.commit();
  const Layout layout = whole_documents(std::vector<int64_t>(static_cast<size_t>(batch), length));
  store.begin_step();
  both_passes(run, "ema", text("B", batch, " T", length, " C", channels, " N", states), layout,
              {GpuRun::noise({layout.tokens(), channels}, Dtype::bf16, 1)}, 1, 1,
              [&](const Block& block, Crossing& cross) { return ema(block.x[0], block, cross, 64, 0); });
  store.finish_step();
}

}  // namespace

void bench_gpu_recurrences(GpuRun& run) {
  for (const char* id : {"lightning", "simple_gla", "gla"})
    for (const Sizes& s : {Sizes{8, 8192, 16, 128}, {2, 16384, 16, 128}, {1, 131072, 8, 128}})
      recurrence(run, id, s);
  for (const Sizes& s : {Sizes{8, 8192, 16, 64}, {8, 8192, 32, 64}, {8, 2048, 32, 256}})
    recurrence(run, "lightning", s);
  recurrence(run, "simple_gla", {8, 2048, 32, 256});
  for (const Sizes& s : {Sizes{4, 4096, 64, 128}, {2, 16384, 16, 128}})
    recurrence(run, "gated_delta_rule", s);
  // As wide as a model of 4096, beside softmax attention of the same shape (bench_gpu_kernels.cpp).
  for (const char* id : {"lightning", "gla", "gated_delta_rule"})
    for (const Sizes& s : {Sizes{2, 8192, 32, 128}, {16, 1024, 32, 128}}) recurrence(run, id, s);
  average(run, 8, 8192, 2048, 16);
}

}  // namespace weft
