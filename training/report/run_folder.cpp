#include "training/report/run_folder.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "autograd/check.h"
#include "training/checkpoint/files.h"
#include "training/recipe/load.h"
#include "training/train.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr double kSilent = 120;  // seconds without a line after which a run counts as stopped

double number(const Json& line, const char* key) {
  const auto at = line.find(key);
  return at != line.end() && at->is_number() ? at->get<double>() : NAN;
}

int64_t whole(const Json& line, const char* key) {
  const auto at = line.find(key);
  return at != line.end() && at->is_number_integer() ? at->get<int64_t>() : -1;
}

void read_metrics(RunData& run) {
  std::ifstream file(run.folder + "/metrics.jsonl", std::ios::binary);
  if (!file) {
    run.problems.emplace_back("metrics.jsonl is missing");
    return;
  }
  int64_t damaged = 0;
  std::vector<double> seconds;  // of each point's step
  int64_t refused = -1;         // the step of the last `skip`, whose own line comes next
  for (std::string text; std::getline(file, text);) {
    const bool cut_off = file.eof();  // the writer is in the middle of it, or died there
    const Json line = Json::parse(text, nullptr, false);
    if (!line.is_object()) {
      damaged += !cut_off && !text.empty();
      continue;
    }
    const double time = number(line, "time");
    if (std::isfinite(time)) run.last_write = time;
    if (line.contains("event")) {
      refused = line["event"] == "skip" ? whole(line, "step") : -1;
      continue;
    }
    RunPoint point;
    point.step = whole(line, "step");
    point.tokens = whole(line, "tokens");
    if (point.step < 0 || point.tokens < 0) {
      ++damaged;
      continue;
    }
    while (!run.points.empty() && run.points.back().step >= point.step)
      run.points.pop_back(), seconds.pop_back();
    point.loss = number(line, "loss");
    point.grad_norm = number(line, "grad_norm");
    point.lr = number(line, "lr");
    point.tokens_per_s = number(line, "tokens_per_s");
    point.val_loss = number(line, "val_loss");
    point.val_bpb = number(line, "val_bpb");
    point.val_accuracy = number(line, "val_accuracy");
    point.val_exact = number(line, "val_exact");
    point.refused = point.step == std::exchange(refused, -1);
    run.points.push_back(point);
    const double step_s = number(line, "step_s");
    seconds.push_back(std::isfinite(step_s) ? step_s : 0);
  }
  double sum = 0;
  for (size_t i = 0; i < seconds.size(); ++i) run.points[i].hours = (sum += seconds[i]) / 3600;
  if (damaged > 0) run.problems.push_back(text(damaged, " lines of metrics.jsonl are damaged"));
  if (run.points.empty()) run.problems.emplace_back("metrics.jsonl has no step");
}

void read_recipe(RunData& run) {
  const std::string path = run.folder + "/recipe.yaml";
  if (!exists(path)) {
    run.problems.emplace_back("recipe.yaml is missing");
    return;
  }
  struct stat facts {};
  if (::stat(path.c_str(), &facts) == 0) run.last_write = static_cast<double>(facts.st_mtime);
  try {
    run.recipe = load_recipe(path);
  } catch (const Error& error) {
    run.problems.push_back(text("recipe.yaml: ", error.what(), " (", error.where, ")"));
  }
}

void read_environment(RunData& run) {
  std::ifstream file(run.folder + "/environment.json", std::ios::binary);
  const Json all = nlohmann::ordered_json::parse(file, nullptr, false);
  if (!all.is_object()) {
    run.problems.emplace_back(file.is_open() ? "environment.json is damaged" : "environment.json is missing");
    return;
  }
  for (const auto& [key, value] : all.items()) {
    if (key == "weft") continue;
    if (value.is_object()) {
      for (const auto& [inner, of_it] : value.items())
        run.environment.emplace_back(inner, of_it.is_string() ? of_it.get<std::string>() : of_it.dump());
      continue;
    }
    std::string shown = value.is_string() ? value.get<std::string>() : value.is_array() ? "" : value.dump();
    if (value.is_array())
      for (const Json& word : value)
        shown += (shown.empty() ? "" : " ") + (word.is_string() ? word.get<std::string>() : word.dump());
    run.environment.emplace_back(key, shown);
  }
}

// samples.txt has blocks that begin with "=== step N".
void read_sample(RunData& run) {
  std::ifstream file(run.folder + "/samples.txt", std::ios::binary);
  const std::string start = "=== step ";
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(start)) {
      run.sample_step = std::atoll(line.c_str() + start.size());
      run.sample.clear();
    } else if (run.sample_step > 0 && run.sample.size() < 10'000) {
      run.sample += line + "\n";
    }
  }
  while (!run.sample.empty() && run.sample.back() == '\n') run.sample.pop_back();
}

constexpr const char* kSummary = "/log/summary.json";  // of a run that a sweep started: train/1

// Why the run's process failed, where a sweep has noted it.
std::string failure_of(const std::string& folder) {
  std::ifstream file(folder + kSummary, std::ios::binary);
  const Json said = Json::parse(file, nullptr, false);
  if (!said.is_object() || !said.contains("error") || !said["error"].is_object()) return "";
  const auto what = said["error"].find("what");
  return what != said["error"].end() && what->is_string() ? what->get<std::string>() : "";
}

// A run whose last steps were not applied is not done (docs/contract.md, *The end*).
bool ends_in_refused_steps(const RunData& run) {
  const auto last = std::min<size_t>(kRefusedAtTheEnd, run.points.size());
  return std::all_of(run.points.end() - static_cast<std::ptrdiff_t>(last), run.points.end(),
                     [](const RunPoint& p) { return p.refused; });
}

bool is_run(const fs::path& folder) {
  return exists(folder / "recipe.yaml") || exists(folder / "metrics.jsonl") ||
         exists(folder.string() + kSummary);
}

}  // namespace

const char* name_of(RunStatus status) {
  switch (status) {
    case RunStatus::done: return "done";
    case RunStatus::running: return "running";
    case RunStatus::stopped: return "stopped";
    case RunStatus::failed: return "failed";
    case RunStatus::broken: return "broken";
  }
  return "unknown";
}

RunData read_run(const std::string& folder, double now) {
  RunData run;
  run.folder = folder;
  const fs::path path = fs::path(folder).lexically_normal();
  run.name = (path.has_filename() ? path : path.parent_path()).filename().string();
  read_recipe(run);
  read_metrics(run);
  read_environment(run);
  read_sample(run);
  const bool writing = now - run.last_write < kSilent;
  if (!run.recipe || (run.points.empty() && !writing))
    run.status = RunStatus::broken;
  else if (!run.points.empty() && run.points.back().step >= run.recipe->steps)
    run.status = !ends_in_refused_steps(run) ? RunStatus::done
                 : writing                   ? RunStatus::running  // it may go back and try again
                                             : RunStatus::failed;
  else
    run.status = writing ? RunStatus::running : RunStatus::stopped;
  const std::string failure = run.status == RunStatus::done ? "" : failure_of(folder);
  if (!failure.empty()) {
    run.problems.push_back("failed: " + failure);
    if (run.status != RunStatus::broken) run.status = RunStatus::failed;
  } else if (run.status == RunStatus::failed) {
    run.problems.emplace_back("failed: its last steps were all refused");
  }
  return run;
}

std::vector<std::string> run_folders(const std::string& path) {
  if (is_run(path)) return {path};
  std::vector<std::string> inside;
  std::error_code failed;
  for (const fs::directory_entry& entry : fs::directory_iterator(path, failed))
    if (is_run(entry.path())) inside.push_back(entry.path().string());
  if (inside.empty())
    throw Error(Exit::no_checkpoint,
                fs::is_directory(path, failed) ? "there is no run in the folder" : "no such folder", path,
                "name the folder that weft train wrote, or one with several");
  std::sort(inside.begin(), inside.end());
  return inside;
}

}  // namespace weft
