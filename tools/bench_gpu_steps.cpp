// Rows of attention, of a small op and block whose launches decide, and of whole training steps.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "attention/flash_attention.h"
#include "attention/flash_attention_cudnn.h"
#include "attention/registry.h"
#include "attention/seen_pairs.h"
#include "autograd/determinism.h"
#include "autograd/device_times.h"
#include "layers/model.h"
#include "optim/gradient_norm.h"
#include "optim/optimizer.h"
#include "tools/bench_gpu_run.h"
#include "training/micro_step.h"

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

// Which cuDNN there is for softmax attention; empty if none.
std::string with_cudnn() {
  const std::string version = default_device() == Device::cuda ? cuda::cudnn_version() : "";
  return version.empty() ? "" : "cuDNN " + version;
}

// What a call of softmax attention costs the host, its plan known.
void small_attention(GpuRun& run, int64_t tokens, int64_t heads, int64_t size) {
  const Layout layout = whole_documents({tokens});
  const Tensor &at = layout.position, &of = layout.document;
  const auto noise = [&](uint32_t i) { return GpuRun::noise({tokens, heads, size}, Dtype::bf16, i); };
  const Tensor q = noise(1), k = noise(2), v = noise(3);
  AttentionOptions options{.scale = 1 / std::sqrt(static_cast<double>(size))};
  options.documents = 1;
  options.longest = static_cast<int32_t>(tokens);
  run.host(
      {.name = "attention forward, host alone", .shape = text("B1 T", tokens, " H", heads, " D", size)},
      kCalls, [&] { flash_attention_forward(options, q, k, v, at, of, at, of); }, GpuRun::Until::asked);
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

struct ModelSize {
  int64_t layers, width, heads, vocabulary, tokens, context;
};

constexpr int64_t kGraphs = 32;  // as a recipe has by default

// Training steps of one micro-batch, as the trainer takes them.
class Step {
 public:
  Step(const std::string& mechanism, const ModelSize& size, int64_t graphs)
      : model_(config_of(mechanism, size.layers, size.width, size.heads, size.vocabulary), store_),
        micro_step_(model_, store_, graphs) {
    store_.commit();
    optimizer_ = make_optimizer({.lr = 1e-4}, store_);
    const RandomKey random{42, 5};
    const auto id = [&](int64_t i) {
      return static_cast<int32_t>(random.draw(static_cast<uint64_t>(i))[0] %
                                  static_cast<uint64_t>(model_.config().vocab));
    };
    for (int64_t i = 0; i < size.tokens; ++i) {
      batch_.tokens.push_back(id(i));
      batch_.targets.push_back(id(i + 1));
    }
  }

  // Asks for forward, backward and update; `waiting`: reads the norm in between, as training does.
  void operator()(const std::vector<int64_t>& lengths, bool waiting) {
    batch_.offsets = {0};
    for (const int64_t n : lengths) batch_.offsets.push_back(batch_.offsets.back() + n);
    const MicroBatch micro = cut_micro_batch(batch_, SegmentPlan::contiguous, 1, 0, 1, micro_step_.made_on());
    store_.begin_step();
    micro_step_(micro, 1 / static_cast<double>(micro.labels),
                [](const MicroBatch&) { return std::make_unique<LocalCrossings>(); });
    store_.finish_step();
    state_.gradient_norm = waiting ? gradient_norm(store_).value : 1;
    optimizer_->begin(state_);
    micro_step_.graphs().run({}, [&](bool) {
      for (const Range& range : optimizer_->owned()) optimizer_->update(range, state_);
    });
  }

 private:
  ParameterStore store_{Dtype::bf16};
  Model model_;
  MicroStep micro_step_;
  std::unique_ptr<Optimizer> optimizer_;
  StepState state_;
  Batch batch_;
};

// Documents of random lengths up to `longest` that fill `tokens`.
std::vector<int64_t> packed(int64_t tokens, int64_t longest, uint32_t step) {
  std::vector<int64_t> lengths;
  const RandomKey random{42, 9, step};
  for (int64_t left = tokens; left > 0; left -= lengths.back()) {
    const double share = random.uniform(lengths.size());
    lengths.push_back(std::min(left, 1 + static_cast<int64_t>(share * static_cast<double>(longest - 1))));
  }
  return lengths;
}

// Of a token and one that it sees, in documents of these lengths.
double pairs_of(const std::vector<int64_t>& lengths) {
  Segments documents;
  for (size_t i = 0; i < lengths.size(); ++i) documents.push_back({static_cast<int>(i), 0, lengths[i]});
  return seen_pairs({}, documents);
}

double p99_over_p50(std::vector<double> ms) {
  std::sort(ms.begin(), ms.end());
  return BenchRow::percentile(ms, 0.99) / BenchRow::percentile(ms, 0.5);
}

double mean(const std::vector<double>& x) {
  return std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
}

// `ms` without what a straight line through (work, ms) gives to work that differs from its mean.
std::vector<double> at_equal_work(std::vector<double> ms, const std::vector<double>& work) {
  const double mean_ms = mean(ms), mean_work = mean(work);
  double both = 0, square = 0;
  for (size_t i = 0; i < ms.size(); ++i) {
    both += (work[i] - mean_work) * (ms[i] - mean_ms);
    square += (work[i] - mean_work) * (work[i] - mean_work);
  }
  for (size_t i = 0; i < ms.size() && square > 0; ++i) ms[i] -= both / square * (work[i] - mean_work);
  return ms;
}

void steps(GpuRun& run, const std::string& mechanism, const std::string& called, const ModelSize& size,
           int64_t graphs) {
  const int64_t tokens = size.tokens, context = size.context;
  Step step(mechanism, size, graphs);
  const std::vector<int64_t> even(static_cast<size_t>(tokens / context), context);
  // Documents of other lengths are other work for softmax: `work` of each repetition, if it is not the same.
  const auto measure = [&](const std::string& name, const std::string& shape, uint32_t before,
                           uint32_t repeats, const std::function<double(uint32_t)>& once,
                           const std::function<double(uint32_t)>& work = {}) {
    BenchRow row{.name = called + mechanism + name, .shape = shape};
    row.tokens = tokens;
    std::vector<double> ms, works;
    for (uint32_t i = 0; i < (run.small() ? 1 : before); ++i) once(1000 + i);
    for (uint32_t i = 0; i < (run.small() ? 1 : repeats); ++i) {
      ms.push_back(once(i));
      if (work) works.push_back(work(i));
    }
    char out[64];
    std::snprintf(out, sizeof out, "p99/p50 %.3f", p99_over_p50(ms));
    row.note = out;
    if (work) {
      std::snprintf(out, sizeof out, ", %.3f at equal work", p99_over_p50(at_equal_work(ms, works)));
      row.note += out;
    }
    row.take(std::move(ms));
    run.finish(std::move(row));
  };
  measure("", text(tokens, " tokens, T", context), 5, 30, [&](uint32_t) {
    const auto start = BenchClock::now();
    step(even, true);
    wait_for(default_device());
    return ms_since(start);
  });
  // Before it is timed every bucket of documents comes once.
  const auto lengths = [&](uint32_t i) { return packed(tokens, 2 * context, i); };
  measure(
      ", packed", text(tokens, " tokens, T1..", 2 * context), 20, 100,
      [&](uint32_t i) {
        const auto start = BenchClock::now();
        step(lengths(i), true);
        wait_for(default_device());
        return ms_since(start);
      },
      [&](uint32_t i) { return pairs_of(lengths(i)); });
  measure(", host alone", text(tokens, " tokens, T", context), 5, 20, [&](uint32_t) {
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
    row.note = with_cudnn();
    both = run.device(row, {}, [&](int64_t) {
      const std::vector<Tensor> y = flash_attention_forward(options, q, k, v, at, of, at, of);
      if (backward) flash_attention_backward(options, q, k, v, at, of, at, of, {}, {}, y[0], y[1], d_o, {});
    });
  }
  return both;
}

void bench_gpu_attention(GpuRun& run) {
  const int64_t tokens = run.sized(16384), longest = run.small() ? tokens : 131072;
  const bool before = deterministic();
  for (const bool equal_bits : {false, true}) {
    set_deterministic(equal_bits);
    const std::string name = equal_bits ? "attention, equal bits" : "attention";
    for (const int64_t size : {64, 128})
      for (int64_t length = run.small() ? tokens : 1024; length <= longest; length *= 2)
        bench_gpu_attention(run, name, std::max<int64_t>(1, tokens / length), length,
                            run.sized(2048 / size, 1), size);
    if (run.small()) continue;
    bench_gpu_attention(run, name, 16, 1024, 32, 128);  // of width 4096
    bench_gpu_attention(run, name, 2, 8192, 32, 128);
  }
  set_deterministic(before);
}

void bench_gpu_layers(GpuRun& run) {
  small_op(run, run.sized(256, 64), 16, 64);
  small_attention(run, run.sized(256, 64), 16, 64);
  small_block(run, run.sized(256, 64), 16, 64);
}

// Of 124 million weights; and of a model so small that launches decide, as graphs and kernel by kernel.
void bench_gpu_steps(GpuRun& run) {
  const bool small = run.small();
  for (const auto& [mechanism, heads] : {std::pair("softmax", 12), std::pair("lightning", 6)})
    steps(run, mechanism, "step ",
          small ? ModelSize{2, run.sized(768, 96), 2, run.sized(50304, 64), run.sized(32768, 512), 512}
                : ModelSize{12, 768, heads, 50304, 32768, 1024},
          kGraphs);
  const ModelSize few{small ? 2 : 4, 256, 4, run.sized(2048, 64), run.sized(4096, 512), run.sized(512, 128)};
  for (const char* mechanism : {"softmax", "lightning"}) {
    steps(run, mechanism, "small step ", few, kGraphs);
    steps(run, mechanism, "small step without graphs ", few, 0);
  }
}

}  // namespace weft
