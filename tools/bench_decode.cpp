#include "tools/bench_decode.h"

#include <algorithm>
#include <utility>

#include "attention/registry.h"
#include "autograd/check.h"
#include "autograd/device_times.h"
#include "training/decoder.h"

namespace weft {
namespace {

struct Size {
  const char* name;
  int64_t layers, width, heads, vocab;
  std::vector<int64_t> batches, contexts;
};
const std::vector<Size>& sizes() {
  static const std::vector<Size> all{{"tiny", 4, 64, 2, 256, {1, 2}, {64}},
                                     {"124M", 12, 768, 12, 50304, {1, 16}, {2048, 32768}},
                                     {"1.3B", 24, 2048, 16, 50304, {1, 16}, {2048, 32768}}};
  return all;
}
const std::vector<std::string> kLayers{"softmax", "lightning", "hybrid"};

ModelConfig config_of(const Size& size, const std::string& layers) {
  ModelConfig c;
  for (int64_t i = 0; i < size.layers; ++i)
    c.layers.emplace_back(layers != "hybrid" ? layers : i % 4 == 3 ? "softmax" : "lightning");
  c.width = size.width;
  c.heads = c.kv_heads = size.heads;
  c.head_size = size.width / size.heads;
  c.vocab = size.vocab;
  c.attributes = [](const std::string& id) {
    return id == "softmax" ? parse_attributes({"position=rope"}) : FieldValue();
  };
  return c;
}

std::vector<int32_t> some_text(int64_t tokens, int64_t vocab, uint32_t seed) {
  std::vector<int32_t> out;
  const RandomKey random{seed, stream_of("bench.decode"), 0};
  for (int64_t i = 0; i < tokens; ++i)
    out.push_back(
        static_cast<int32_t>(random.draw(static_cast<uint64_t>(i))[0] % static_cast<uint32_t>(vocab)));
  return out;
}

}  // namespace

std::vector<DecodeModel> decode_models(const std::vector<std::string>& words, bool gpu) {
  std::vector<std::string> named_sizes, named_layers;
  for (const std::string& word : words) {
    const bool size =
        std::any_of(sizes().begin(), sizes().end(), [&](const Size& s) { return s.name == word; });
    if (!size && std::find(kLayers.begin(), kLayers.end(), word) == kLayers.end())
      throw Error(Exit::usage, "bench decode knows no '" + word + "'", "",
                  "name tiny, 124M or 1.3B, and softmax, lightning or hybrid");
    (size ? named_sizes : named_layers).push_back(word);
  }
  if (named_sizes.empty())
    named_sizes = gpu ? std::vector<std::string>{"124M", "1.3B"} : std::vector<std::string>{"tiny"};
  if (named_layers.empty()) named_layers = kLayers;
  std::vector<DecodeModel> out;
  for (const std::string& size : named_sizes)
    for (const std::string& layers : named_layers) out.push_back({size, layers});
  return out;
}

double measure_copy_rate() {
  const Device device = default_device();
  const int64_t floats = int64_t{1} << (device == Device::cuda ? 28 : 24);
  const Tensor from = zeros({floats}, Dtype::f32, device), to = zeros({floats}, Dtype::f32, device);
  const std::vector<double> ms = device_times(device, 10, [&](int64_t) { to.copy_from(from); });
  return 2.0 * static_cast<double>(from.bytes()) / (*std::min_element(ms.begin(), ms.end()) * 1e-3);
}

void bench_decode(const DecodeModel& which, int64_t steps, double copy_rate, const BenchDone& done) {
  const Size& size =
      *std::find_if(sizes().begin(), sizes().end(), [&](const Size& s) { return s.name == which.size; });
  const bool gpu = default_device() == Device::cuda;
  ParameterStore store(gpu ? Dtype::bf16 : Dtype::f32);
  const Model model(config_of(size, which.layers), store);
  store.commit();
  int64_t weights = 0;
  for (const ParameterGroup& group : store.groups()) weights += group.working.bytes();
  for (const int64_t context : size.contexts)
    for (const int64_t batch : size.batches) {
      constexpr int64_t kWarmUp = 4;  // products are searched, and the step is recorded
      const int64_t before = std::max<int64_t>(1, context - steps / 2 - kWarmUp);
      std::vector<std::vector<int32_t>> prompts;
      for (int64_t i = 0; i < batch; ++i)
        prompts.push_back(some_text(before, size.vocab, static_cast<uint32_t>(i)));
      Decoder decoder(model, prompts, steps + kWarmUp, {.temperature = 1});
      const std::vector<bool> none(prompts.size(), false);
      std::vector<double> times;
      int64_t kept = 0;  // by the texts, before the first that counts
      for (int64_t i = 0; i < steps + kWarmUp; ++i) {
        if (i == kWarmUp) kept = decoder.state_bytes();
        const auto start = BenchClock::now();
        decoder.step(none);
        decoder.tokens();
        if (i >= kWarmUp) times.push_back(ms_since(start));
      }
      BenchRow row{.name = "decode " + which.size + " " + which.layers,
                   .shape = text("B", batch, " T", context)};
      if (decoder.replays()) row.note = "one CUDA graph a step";
      row.dtype = gpu ? "bf16" : "f32";
      row.take(std::move(times));
      row.tokens = batch;
      row.bytes = static_cast<double>(weights + kept);
      row.floor_ms = row.bytes / copy_rate * 1e3;
      done(row);
    }
}

}  // namespace weft
