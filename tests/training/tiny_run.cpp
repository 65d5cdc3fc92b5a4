#include "tests/training/tiny_run.h"

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "training/checkpoint/load.h"
#include "training/data/stories.h"

namespace weft {
namespace {

constexpr const char* kRecipe = R"(data:
  train: stories.txt
  val: 0.05
  tokenizer: bytes
steps: 20
batch_tokens: 256
context: 64
precision: f32
model:
  layers: [lightning, softmax]
  width: 32
  heads: 2
optim:
  lr: 3.0e-3
  warmup: 4
  schedule: constant
checkpoint:
  every: 5
  keep: 0
eval:
  every: 10
  batches: 2
sample:
  tokens: 16
  prompt: "Once "
)";

Words joined(Words first, const Words& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

}  // namespace

TinyRun::TinyRun() {
  folder_.write("stories.txt", story_corpus(7, 60'000));
  folder_.write("tiny.yaml", kRecipe);
}

Ran TinyRun::weft(const Words& words, RunOptions options) const {
  options.folder = folder_.path();
  return run_weft(words, options);
}

Ran TinyRun::train(const Words& words, RunOptions options) const {
  return weft(joined({"train", "tiny.yaml", "--json-summary"}, words), std::move(options));
}

Ran TinyRun::launch(int ranks, const Words& words, RunOptions options) const {
  options.environment.push_back("OMP_NUM_THREADS=1");
  return weft(joined({"launch", "-n", std::to_string(ranks), "train", "tiny.yaml", "--json-summary"}, words),
              std::move(options));
}

Ran TinyRun::launch_unlike(const std::string& lines, const Words& words) const {
  folder_.write("unlike.sh", "#!/bin/sh\nif [ \"${OMPI_COMM_WORLD_RANK:-$PMI_RANK}\" = 1 ]; then\n" + lines +
                                 "\nfi\nexec \"$@\"\n");
  const std::string path = folder_ / "unlike.sh";
  std::filesystem::permissions(path, std::filesystem::perms::owner_all);
  return weft(joined({"launch", "-n", "2", "--pass", path}, words));
}

Ran TinyRun::mpirun(int ranks, const Words& words, RunOptions options) const {
  for (const char* setting :
       {"OMP_NUM_THREADS=1", "OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"})
    options.environment.emplace_back(setting);
  options.mpirun = ranks;
  return train(words, std::move(options));
}

std::vector<nlohmann::json> TinyRun::lines(const std::string& run) const {
  std::istringstream in(folder_.read("runs/" + run + "/metrics.jsonl"));
  std::vector<nlohmann::json> all;
  for (std::string line; std::getline(in, line);) all.push_back(nlohmann::json::parse(line));
  return all;
}

std::vector<nlohmann::json> TinyRun::steps(const std::string& run) const {
  std::vector<nlohmann::json> all = lines(run);
  std::erase_if(all, [](const auto& line) { return line.contains("event"); });
  return all;
}

std::vector<nlohmann::json> TinyRun::events(const std::string& kind, const std::string& run) const {
  std::vector<nlohmann::json> all = lines(run);
  std::erase_if(all, [&](const auto& line) { return !line.contains("event") || line["event"] != kind; });
  return all;
}

std::string TinyRun::weights_hash_at(int step, const std::string& run) const {
  return ckpt::verify(this->run(run) + "/checkpoints/step-" + std::to_string(step), step).weights_hash;
}

std::vector<std::string> TinyRun::checkpoints(const std::string& run) const {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(this->run(run) + "/checkpoints"))
    names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace weft
