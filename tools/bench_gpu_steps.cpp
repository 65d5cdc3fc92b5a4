// Rows of attention, of a small op and block whose launches decide, and of whole training steps.

#include <algorithm>
#include <chrono>
#include <cmath>

#include "attention/flash_attention.h"
#include "attention/registry.h"
#include "autograd/device_times.h"
#include "autograd/ops/projected_cross_entropy.h"
#include "layers/model.h"
#include "optim/gradient_norm.h"
#include "optim/optimizer.h"
#include "tools/bench_gpu_run.h"

namespace weft {
namespace {

constexpr int64_t kCalls = 100;

ModelConfig config_of(const std::string& mechanism, int64_t layers, int64_t width, int64_t heads,
                      int64_t vocabulary) {
  ModelConfig config{.layers = std::vector<std::string>(static_cast<size_t>(layers), mechanism),
                     .width = width,
                     .heads = heads,
                     .kv_heads = heads,
                     .head_size = width / heads};
  config.vocab = vocabulary;
  config.attributes = [](const std::string& id) {
    return id == "softmax" ? parse_attributes({"position=rope"}) : FieldValue();
  };
  return config;
}

// Linear attention with a decay a head, forward and backward, from its tape to its gradients.
void small_op(GpuRun& run, int64_t tokens, int64_t heads, int64_t size) {
  const Dimensions dims{.heads = heads, .kv_heads = heads, .key = size, .value = size, .width = heads * size};
  ParameterStore store(Dtype::bf16);
  const auto mechanism = find_mechanism("lightning").make({}, dims, {store, ""});
  store.commit();
  const Layout layout = whole_documents({tokens});
  std::vector<Tensor> inputs;
  for (const Input& input : mechanism->inputs()) {
    const Shape shape = input_shape(input, dims, tokens);
    inputs.push_back(mechanism->fixed_input(input.name).empty()
                         ? GpuRun::noise(shape, Dtype::bf16, static_cast<uint32_t>(inputs.size()))
                         : fixed_rows(*mechanism, input, tokens, Dtype::f32, default_device()));
  }
  const Tensor seed = GpuRun::noise({tokens, heads, size}, Dtype::bf16, 7);
  run.host({.name = "linear op forward+backward, host included",
            .shape = text("B1 T", tokens, " H", heads, " D", size)},
           kCalls, [&] {
             Tape tape;
             Block block{{}, layout.position, layout.document};
             for (size_t i = 0; i < inputs.size(); ++i)
               block.x.push_back(i < 3 ? tape.input(inputs[i]) : Variable(inputs[i]));
             LocalCrossing cross(layout);
             tape.backward(mechanism->forward(block, cross), seed);
           });
}

// A block around it: norms, projections, gated unit.
void small_block(GpuRun& run, int64_t tokens, int64_t heads, int64_t size) {
  ParameterStore store(Dtype::bf16);
  const Model model(config_of("lightning", 1, heads * size, heads, 64), store);
  store.commit();
  const Layout layout = whole_documents({tokens});
  const Tensor x = GpuRun::noise({tokens, heads * size}, Dtype::bf16, 1),
               seed = GpuRun::noise(x.shape(), x.dtype(), 2);
  run.host({.name = "linear block forward+backward, host included",
            .shape = text("B1 T", tokens, " H", heads, " D", size)},
           kCalls, [&] {
             store.begin_step();
             Tape tape;
             LocalCrossings crossings;
             const auto y = model.blocks()[0](tape.input(x), {}, layout, crossings, 0);
             tape.backward({y.x, y.branch}, {seed, seed});
           });
}

// Training steps of a model of 124 million weights.
class Step {
 public:
  Step(const GpuRun& run, const std::string& mechanism, int64_t heads, int64_t tokens)
      : tokens_(tokens),
        model_(config_of(mechanism, run.small() ? 2 : 12, run.sized(768, 96), heads, run.sized(50304, 64)),
               store_) {
    store_.commit();
    optimizer_ = make_optimizer({.lr = 1e-4}, store_);
    std::vector<int32_t> ids;
    const RandomKey random{42, 5};
    for (int64_t i = 0; i <= tokens; ++i)
      ids.push_back(static_cast<int32_t>(random.draw(static_cast<uint64_t>(i))[0] %
                                         static_cast<uint64_t>(model_.config().vocab)));
    inputs_ = from_ints({ids.begin(), ids.end() - 1});
    targets_ = from_ints({ids.begin() + 1, ids.end()});
    seed_ = full({}, 1 / static_cast<double>(tokens), Dtype::f32);
  }

  // Asks for forward, backward and update; `waiting`: reads the norm in between, as training does.
  void operator()(const Layout& layout, bool waiting) {
    store_.begin_step();
    Tape tape;
    LocalCrossings crossings;
    const Variable h = model_.hidden(inputs_, layout, crossings);
    const double share = 1 / static_cast<double>(tokens_);
    tape.backward(projected_cross_entropy(h, model_.output_weight(), targets_, {.seed = share}).loss, seed_);
    store_.finish_step();
    state_.gradient_norm = waiting ? gradient_norm(store_).value : 1;
    optimizer_->step(state_);
  }

 private:
  int64_t tokens_;
  ParameterStore store_{Dtype::bf16};
  Model model_;
  std::unique_ptr<Optimizer> optimizer_;
  StepState state_;
  Tensor inputs_, targets_, seed_;
};

// Documents of random lengths up to `longest` that fill `tokens`.
Layout packed(int64_t tokens, int64_t longest, uint32_t step) {
  std::vector<int64_t> lengths;
  const RandomKey random{42, 9, step};
  for (int64_t left = tokens; left > 0; left -= lengths.back()) {
    const double share = random.uniform(lengths.size());
    lengths.push_back(std::min(left, 1 + static_cast<int64_t>(share * static_cast<double>(longest - 1))));
  }
  return whole_documents(lengths);
}

void steps(GpuRun& run, const std::string& mechanism, int64_t heads) {
  const int64_t tokens = run.sized(32768, 512), context = std::min<int64_t>(1024, tokens);
  Step step(run, mechanism, heads, tokens);
  const Layout even = whole_documents(std::vector<int64_t>(static_cast<size_t>(tokens / context), context));
  const auto measure = [&](const std::string& name, const std::string& shape, int64_t repeats,
                           const std::function<double(uint32_t)>& once) {
    BenchRow row{.name = text("step ", mechanism, name), .shape = shape};
    row.tokens = tokens;
    std::vector<double> ms;
    for (uint32_t i = 0; i < 5 && !run.small(); ++i) once(1000 + i);
    for (uint32_t i = 0; i < (run.small() ? 1 : repeats); ++i) ms.push_back(once(i));
    std::sort(ms.begin(), ms.end());
    char out[64];
    std::snprintf(out, sizeof out, "p99/p50 %.3f",
                  BenchRow::percentile(ms, 0.99) / BenchRow::percentile(ms, 0.5));
    row.note = out;
    row.take(std::move(ms));
    run.finish(std::move(row));
  };
  measure("", text(tokens, " tokens, T", context), 50, [&](uint32_t) {
    const auto start = BenchClock::now();
    step(even, true);
    wait_for(default_device());
    return ms_since(start);
  });
  measure(", packed", text(tokens, " tokens, T1..", 2 * context), 100, [&](uint32_t i) {
    const auto start = BenchClock::now();
    step(packed(tokens, 2 * context, i), true);
    wait_for(default_device());
    return ms_since(start);
  });
  measure(", host alone", text(tokens, " tokens, T", context), 20, [&](uint32_t) {
    const auto start = BenchClock::now();
    step(even, false);
    const double ms = ms_since(start);
    wait_for(default_device());
    return ms;
  });
}

}  // namespace

// Causal: half of all pairs, counted exactly. Two products of them forward, five backward.
double bench_gpu_attention(GpuRun& run, const std::string& name, int64_t batch, int64_t length, int64_t heads,
                           int64_t size) {
  double both = 0;
  const int64_t tokens = batch * length;
  const Layout layout = whole_documents(std::vector<int64_t>(static_cast<size_t>(batch), length));
  const Tensor &at = layout.position, &of = layout.document;
  const auto noise = [&](uint32_t i) { return GpuRun::noise({tokens, heads, size}, Dtype::bf16, i); };
  const Tensor q = noise(1), k = noise(2), v = noise(3), d_o = noise(4);
  const int64_t pairs = batch * heads * length * (length + 1) / 2;
  AttentionOptions options{.scale = 1 / std::sqrt(static_cast<double>(size))};
  options.documents = static_cast<int32_t>(batch);
  options.longest = static_cast<int32_t>(length);
  for (const bool backward : {false, true}) {
    BenchRow row{.name = name + (backward ? " forward+backward" : " forward"),
                 .shape = text("B", batch, " T", length, " H", heads, " D", size)};
    row.flops = 2.0 * static_cast<double>(pairs * size) * (backward ? 7 : 2);
    row.tokens = tokens;
    both = run.device(row, {}, [&](int64_t) {
      const std::vector<Tensor> y = flash_attention_forward(options, q, k, v, at, of, at, of);
      if (backward) flash_attention_backward(options, q, k, v, at, of, at, of, {}, {}, y[0], y[1], d_o, {});
    });
  }
  return both;
}

void bench_gpu_attention(GpuRun& run) {
  const int64_t tokens = run.sized(16384), longest = run.small() ? tokens : 131072;
  for (const int64_t size : {64, 128})
    for (int64_t length = run.small() ? tokens : 1024; length <= longest; length *= 2)
      bench_gpu_attention(run, "attention", std::max<int64_t>(1, tokens / length), length,
                          run.sized(2048 / size, 1), size);
}

void bench_gpu_layers(GpuRun& run) {
  small_op(run, run.sized(256, 64), 16, 64);
  small_block(run, run.sized(256, 64), 16, 64);
}

void bench_gpu_steps(GpuRun& run) {
  steps(run, "softmax", run.small() ? 2 : 12);
  steps(run, "lightning", run.small() ? 2 : 6);
}

}  // namespace weft
