#include "training/generate.h"

#include <algorithm>

#include "autograd/philox.h"
#include "training/decoder.h"

namespace weft {

int32_t drawn_start(const std::vector<int32_t>& starts, uint32_t seed) {
  const RandomKey key{.seed = seed, .stream = stream_of("generate.start")};
  return starts[key.draw(0)[0] % starts.size()];
}

std::vector<std::vector<int32_t>> generate(const Model& model,
                                           const std::vector<std::vector<int32_t>>& prompts,
                                           const SamplingOptions& options,
                                           const std::function<bool(size_t, int32_t)>& each) {
  std::vector<std::vector<int32_t>> out(prompts.size());
  if (prompts.empty() || options.tokens <= 0) return out;
  Decoder decoder(model, prompts, options.tokens,
                  {options.temperature, options.top_k, options.top_p, options.seed, stream_of("generate")},
                  options.vocab);
  std::vector<bool> finished(prompts.size(), false);
  while (true) {
    const std::vector<int32_t> tokens = decoder.tokens();
    for (size_t i = 0; i < out.size(); ++i) {
      if (finished[i]) continue;
      if (tokens[i] == options.stop) {
        finished[i] = true;
        continue;
      }
      out[i].push_back(tokens[i]);
      finished[i] = (each && !each(i, tokens[i])) || std::ssize(out[i]) == options.tokens;
    }
    if (std::all_of(finished.begin(), finished.end(), [](bool f) { return f; })) return out;
    decoder.step(finished);
  }
}

}  // namespace weft
