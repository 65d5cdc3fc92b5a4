#include <cmath>
#include <cstdio>
#include <fstream>

#include "autograd/notes.h"
#include "tools/commands.h"
#include "tools/commands/json_line.h"
#include "tools/device_flag.h"
#include "tools/flags.h"
#include "training/generate.h"
#include "training/open_model.h"

namespace weft {

namespace {

// A prompt a line.
Words read_prompts(const std::string& path) {
  std::ifstream file(path);
  Words prompts;
  for (std::string line; std::getline(file, line); prompts.push_back(line))
    if (!line.empty() && line.back() == '\r') line.pop_back();  // as other systems end a line
  if (!file.eof())                                              // no such file, or a folder
    throw Error(Exit::data, "cannot read the prompts", path, "name a file with one prompt on each line");
  if (prompts.empty())
    throw Error(Exit::data, "the file has no prompts", path, "write one prompt on each line");
  return prompts;
}

// A finite number, or NaN.
double number_of(const std::string& word) {
  try {
    size_t used = 0;
    const double number = std::stod(word, &used);
    return used == word.size() && std::isfinite(number) ? number : NAN;
  } catch (const std::logic_error&) {
    return NAN;
  }
}

}  // namespace

int run_generate(const Words& words) {
  SamplingOptions options;
  int64_t seed = 1;
  bool json = false;
  Words prompts;
  std::string file, temperature = "0.8", top_p = "1", device;
  Flags flags(
      "generate", "RUN",
      "Continues texts with a trained model, several side by side, each as it would be continued alone.");
  flags.add("--prompt", prompts, "TEXT",
            "text to continue; may be given more than once; default: an empty one, which starts as a "
            "training document does");
  flags.add("--prompts", file, "FILE", "file of texts to continue, one a line");
  flags.add("--tokens", options.tokens, "N", "at most this many tokens for each text; default 128",
            {.min = 1});
  flags.add("--temperature", temperature, "T",
            "divides the logits; 0: always take the most likely token; default 0.8");
  flags.add("--top-k", options.top_k, "K",
            "draw only from the K most likely tokens; 0, the default: from all", {.min = 0});
  flags.add("--top-p", top_p, "P",
            "of these, draw only from the fewest most likely whose probabilities sum to P or more; 1, the "
            "default: from all");
  flags.add("--seed", seed, "S",
            "seed of the draws, the same for each text: equal prompts give equal texts; default 1",
            {.min = 0, .max = UINT32_MAX});
  flags.add("--device", device, "cpu|cuda", kDeviceHelp);
  flags.add("--json", json, "one line of JSON, generate/1");
  if (!flags.parse(words)) return 0;
  compute_on(device);
  options.temperature = number_of(temperature);
  if (!(options.temperature >= 0))
    throw Error(Exit::usage, text("--temperature needs a number >= 0, got ", temperature), "--temperature");
  options.top_p = number_of(top_p);
  if (!(options.top_p > 0 && options.top_p <= 1))
    throw Error(Exit::usage, text("--top-p needs a number > 0 and <= 1, got ", top_p), "--top-p");
  options.seed = static_cast<uint32_t>(seed);
  const OpenModel m = open_model(flags.arguments()[0]);
  print_warnings(m.warnings);
  if (!m.recipe.data.task.empty())
    throw Error(Exit::usage, "the run was trained on a task, whose tokens are not text", flags.arguments()[0],
                "score it with weft eval");
  options.stop = m.tokenizer->eos_id();
  options.vocab = m.tokenizer->vocab_size();
  if (!file.empty())
    for (const std::string& prompt : read_prompts(file)) prompts.push_back(prompt);
  if (prompts.empty()) prompts.emplace_back();
  std::vector<std::vector<int32_t>> ids;
  std::vector<StreamDecoder> decoders;
  Words texts(prompts.size());
  for (const std::string& prompt : prompts) {
    ids.push_back(m.tokenizer->encode(prompt));
    decoders.emplace_back(*m.tokenizer, !prompt.empty());
    if (!ids.back().empty()) continue;
    if (m.starts.empty()) {  // a checkpoint of before these were kept
      ids.back() = {m.tokenizer->eos_id()};
      continue;
    }
    ids.back() = {drawn_start(m.starts, options.seed)};
    texts[ids.size() - 1] = decoders.back().push(ids.back()[0]);
  }
  // One text is printed as it comes, several when all are done.
  const bool live = prompts.size() == 1 && !json;
  if (live) print(prompts[0]);
  const auto tokens = generate(*m.model, ids, options, [&](size_t i, int32_t token) {
    texts[i] += decoders[i].push(token);
    if (live) {
      print(for_reader(texts[i]));
      texts[i].clear();
      std::fflush(stdout);
    }
    return true;
  });
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (size_t i = 0; i < texts.size(); ++i) {
    texts[i] += decoders[i].finish();
    if (json)
      rows.push_back({{"prompt", prompts[i]}, {"text", texts[i]}, {"tokens", tokens[i].size()}});
    else
      print((i > 0 ? "\n" : "") + for_reader(live ? texts[i] : prompts[i] + texts[i]) + "\n");
  }
  if (json) print_line({{"weft", "generate/1"}, {"exit", 0}, {"texts", rows}});
  for (const std::string& note : take_notes()) std::fprintf(stderr, "weft: %s\n", note.c_str());
  return 0;
}

}  // namespace weft
