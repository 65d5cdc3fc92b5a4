// What a training step of recipes/124m/softmax.yaml and 1b/softmax.yaml takes at least, if products and
// attention take what they take alone and all else what its bytes take at the rate of a copy:
// docs/benchmarks/training.md, "Share of the floors".

#include <algorithm>
#include <cmath>

#include "autograd/determinism.h"
#include "tools/bench_gpu_run.h"

namespace weft {
namespace {

constexpr int64_t kMicroBatches = 4;  // of a step

struct FloorModel {
  std::string recipe, size;  // of rows: "124m/softmax", "124M"
  int64_t layers, width, heads, ffn, vocabulary, micro_tokens;
  std::vector<int64_t> contexts;

  // Elements of bf16 that a token's activations move in and out of kernels that are neither a product nor
  // attention, each tensor once for each kernel that needs it.
  int64_t elements_of_a_layer() const {
    const int64_t norm = 4 * width;    // of the sum of two tensors, sum and norm written
    const int64_t back = 4 * width;    // sum and two gradients read, one written
    const int64_t rotary = 4 * width;  // q and k there and back
    const int64_t unit = 3 * ffn, unit_back = 5 * ffn;
    return 2 * (norm + back) + 2 * rotary + unit + unit_back;
  }
  int64_t elements_of_the_ends() const {
    const int64_t embedding = 2 * width + 3 * width;  // rows copied; their gradient added to rows in f32
    const int64_t norm = 8 * width;                   // the last
    const int64_t loss = 2 * vocabulary;              // logits read, their gradient written in their place
    return embedding + norm + loss;
  }
  double micro_bytes() const {
    return 2.0 *
           static_cast<double>(micro_tokens * (layers * elements_of_a_layer() + elements_of_the_ends()));
  }
  int64_t weights() const {
    return layers * (width * (4 * width + 3 * ffn) + 2 * width) + vocabulary * width + width;
  }
  // f32: weight and two moments there and back, the gradient for its norm and for the update; bf16: the copy.
  double update_bytes() const { return static_cast<double>(weights() * (8 * 4 + 2)); }
};

std::string hundredths(double ms) { return text(std::lround(100 * ms) / 100.0); }

void floors(GpuRun& run, const FloorModel& m) {
  const auto product = [&](const char* name, int64_t tokens, int64_t out, int64_t in) {
    const std::string called = m.size + " " + name;
    return bench_gpu_product(run, {called.c_str(), tokens, out, in});
  };
  const int64_t tokens = m.micro_tokens;
  const double layer =
      product("qkv", tokens, 3 * m.width, m.width) + product("out", tokens, m.width, m.width) +
      product("gate_up", tokens, 2 * m.ffn, m.width) + product("down", tokens, m.width, m.ffn);
  // Logits of a micro-batch never exist whole, so their products are measured at a quarter.
  const double head = 4 * product("projection", tokens / 4, m.vocabulary, m.width);
  const double products = static_cast<double>(m.layers) * layer + head;
  const double bytes = m.micro_bytes() / run.byte_rate, update = m.update_bytes() / run.byte_rate;
  for (const int64_t context : m.contexts) {
    const double attention =
        static_cast<double>(m.layers) *
        bench_gpu_attention(run, "floor attention", tokens / context, context, m.heads, m.width / m.heads);
    BenchRow row{.name = "floors " + m.recipe, .shape = text("T", context)};
    row.tokens = kMicroBatches * tokens;
    row.note = "a micro-batch: products " + hundredths(products) + " ms, attention " + hundredths(attention) +
               ", bytes " + hundredths(bytes) + "; update " + hundredths(update);
    row.take({kMicroBatches * (products + attention + bytes) + update});
    run.finish(row);
  }
}

}  // namespace

void bench_gpu_floors(GpuRun& run) {
  const bool before = deterministic();
  set_deterministic(false);  // as the recipes do
  if (run.small()) {
    floors(run, {"tiny/softmax", "tiny", 2, 64, 1, 128, 512, 256, {128}});
  } else {
    floors(run, {"124m/softmax", "124M", 12, 768, 12, 2048, 50304, 32768, {1024, 8192, 32768}});
    floors(run, {"1b/softmax", "1.3B", 24, 2048, 16, 5632, 50304, 16384, {2048, 8192}});
  }
  set_deterministic(before);
}

}  // namespace weft
