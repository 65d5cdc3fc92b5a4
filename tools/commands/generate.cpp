#include <cmath>
#include <cstdio>

#include "tools/commands.h"
#include "tools/device_flag.h"
#include "tools/flags.h"
#include "training/generate.h"
#include "training/open_model.h"

namespace weft {

int run_generate(const Words& words) {
  SamplingOptions options;
  int64_t seed = 1;
  std::string prompt, temperature = "0.8", device;
  Flags flags("generate", "RUN", "Continues a text with a trained model.");
  flags.add("--prompt", prompt, "TEXT", "what to continue");
  flags.add("--tokens", options.tokens, "N", "at most so many", {.min = 1});
  flags.add("--temperature", temperature, "T", "0 takes the likeliest token each time");
  flags.add("--top-k", options.top_k, "K", "draws among the K likeliest; 0: all", {.min = 0});
  flags.add("--seed", seed, "S", "of the draws", {.min = 0, .max = UINT32_MAX});
  flags.add("--device", device, "cpu|cuda", kDeviceHelp);
  if (!flags.parse(words)) return 0;
  compute_on(device);
  try {
    size_t used = 0;
    options.temperature = std::stod(temperature, &used);
    if (used != temperature.size() || !(options.temperature >= 0) || std::isinf(options.temperature))
      throw std::invalid_argument("");
  } catch (const std::logic_error&) {
    throw Error(Exit::usage, text("--temperature wants a number >= 0, got ", temperature), "--temperature");
  }
  options.seed = static_cast<uint32_t>(seed);
  const OpenModel m = open_model(flags.arguments()[0]);
  if (!m.recipe.data.task.empty())
    throw Error(Exit::usage, "the run was trained on a task, whose tokens are no text", flags.arguments()[0],
                "score it with weft eval");
  options.stop = m.tokenizer->eos_id();
  options.vocab = m.tokenizer->vocab_size();
  std::vector<int32_t> ids = m.tokenizer->encode(prompt);
  if (ids.empty()) ids = {m.tokenizer->eos_id()};
  print(prompt);
  StreamDecoder decoder(*m.tokenizer);
  generate(*m.model, ids, options, [&](int32_t token) {
    print(decoder.push(token));
    std::fflush(stdout);
    return true;
  });
  print(decoder.finish() + "\n");
  return 0;
}

}  // namespace weft
