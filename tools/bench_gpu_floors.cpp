// What a training step of recipes/124m/softmax.yaml takes at least, if products and attention take what they
// take alone and all else what its bytes take at the rate of a copy: docs/benchmarks/training.md, "Share of the
// floors".

#include <algorithm>
#include <cmath>

#include "autograd/determinism.h"
#include "tools/bench_gpu_run.h"

namespace weft {
namespace {

constexpr int64_t kLayers = 12, kWidth = 768, kHeads = 12, kFfn = 2048, kVocabulary = 50304;
constexpr int64_t kMicroTokens = 32768, kMicroBatches = 4;

// Elements of bf16 that a token's activations move in and out of kernels that are neither a product nor
// attention, each tensor once for each kernel that needs it.
double elements_of_a_layer(double width, double ffn) {
  const double norm = 4 * width;    // of the sum of two tensors, sum and norm written
  const double back = 4 * width;    // sum and two gradients read, one written
  const double rotary = 4 * width;  // q and k there and back
  const double unit = 3 * ffn, unit_back = 5 * ffn;
  return 2 * (norm + back) + 2 * rotary + unit + unit_back;
}

double elements_of_the_ends(double width, double vocabulary) {
  const double embedding = 2 * width + 3 * width;  // rows copied; their gradient added to rows in f32
  const double norm = 8 * width;                   // the last
  const double loss = 2 * vocabulary;              // logits read, their gradient written in their place
  return embedding + norm + loss;
}

double weights(double width, double ffn, double vocabulary) {
  return kLayers * (width * (4 * width + 3 * ffn) + 2 * width) + vocabulary * width + width;
}

}  // namespace

void bench_gpu_floors(GpuRun& run) {
  const int64_t width = run.sized(kWidth, 64), ffn = run.sized(kFfn, 64),
                vocabulary = run.sized(kVocabulary, 64), tokens = run.sized(kMicroTokens, 64),
                heads = run.sized(kHeads, 1);
  double layer = 0;  // ms of a micro-batch
  for (const LayerProduct& p : {LayerProduct{"124M qkv", kMicroTokens, 3 * kWidth, kWidth},
                                LayerProduct{"124M out", kMicroTokens, kWidth, kWidth},
                                LayerProduct{"124M gate_up", kMicroTokens, 2 * kFfn, kWidth},
                                LayerProduct{"124M down", kMicroTokens, kWidth, kFfn}})
    layer += bench_gpu_product(run, p);
  // Logits of a micro-batch never exist whole, so their products are measured at a quarter.
  const double head = 4 * bench_gpu_product(run, {"124M projection", kMicroTokens / 4, kVocabulary, kWidth});
  const auto real = [](int64_t n) { return static_cast<double>(n); };
  const double micro_bytes = 2 * real(tokens) *
                             (kLayers * elements_of_a_layer(real(width), real(ffn)) +
                              elements_of_the_ends(real(width), real(vocabulary)));
  // f32: weight and two moments there and back, the gradient for its norm and for the update; bf16: the copy.
  const double update_bytes = weights(real(width), real(ffn), real(vocabulary)) * (8 * 4 + 2);
  const bool before = deterministic();
  set_deterministic(false);  // as the recipe does
  for (const int64_t context : {1024, 8192, 32768}) {
    const int64_t length = std::min(context, tokens);
    const double attention =
        bench_gpu_attention(run, "floor attention", tokens / length, length, heads, width / heads);
    const double micro = kLayers * (layer + attention) + head + micro_bytes / run.byte_rate;
    const double update = update_bytes / run.byte_rate;
    BenchRow row{.name = "floors 124m/softmax", .shape = text("T", length)};
    row.tokens = kMicroBatches * tokens;
    row.note = text("a micro-batch: products ", std::lround(100 * (kLayers * layer + head)) / 100.0,
                    " ms, attention ", std::lround(100 * kLayers * attention) / 100.0, ", bytes ",
                    std::lround(100 * micro_bytes / run.byte_rate) / 100.0, "; update ",
                    std::lround(100 * update) / 100.0);
    row.take({kMicroBatches * micro + update});
    run.finish(row);
    if (run.small()) break;
  }
  set_deterministic(before);
}

}  // namespace weft
