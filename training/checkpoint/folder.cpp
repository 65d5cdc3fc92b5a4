#include "training/checkpoint/folder.h"

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "autograd/check.h"
#include "training/checkpoint/files.h"
#include "training/checkpoint/manifest.h"

namespace weft::ckpt {
namespace {

const std::string prefix = "step-";

std::string checkpoints(const std::string& run_folder) { return run_folder + "/checkpoints"; }

// 12 of "step-12"; nothing for any other name, such as "step-012", "step-12.tmp-x" or "step-".
std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(prefix)) return {};
  int64_t step = 0;
  std::from_chars(name.data() + prefix.size(), name.data() + name.size(), step);
  if (step < 0 || name != prefix + std::to_string(step)) return {};
  return step;
}

}  // namespace

std::string step_folder(const std::string& run_folder, int64_t step) {
  return text(checkpoints(run_folder), "/", prefix, step);
}

std::string temporary_folder(const std::string& run_folder, int64_t step, const std::string& run) {
  return step_folder(run_folder, step) + ".tmp-" + run;
}

std::string shard_name(int64_t rank) {
  char name[40];
  std::snprintf(name, sizeof name, "rank-%04lld.h5", static_cast<long long>(rank));
  return name;
}

std::vector<int64_t> list_steps(const std::string& run_folder) {
  std::vector<int64_t> steps;
  for (const std::string& name : list_folder(checkpoints(run_folder)))
    if (const auto step = step_of(name)) steps.push_back(*step);
  std::sort(steps.begin(), steps.end());
  return steps;
}

std::optional<int64_t> read_latest(const std::string& run_folder) {
  const std::string path = run_folder + "/latest";
  if (!exists(path)) return {};
  try {
    const std::string content = read_text_file(path, 256);
    const std::string start = "checkpoints/";
    if (!content.starts_with(start) || !content.ends_with("\n")) return {};
    return step_of(content.substr(start.size(), content.size() - start.size() - 1));
  } catch (const Error&) {
    return {};  // unreadable is as good as garbage: the caller looks at the steps themselves
  }
}

std::string latest_run(const std::string& run_folder) {
  const std::optional<int64_t> step = read_latest(run_folder);
  if (!step) return {};
  const std::string path = step_folder(run_folder, *step) + "/MANIFEST";
  try {
    return parse_manifest(read_text_file(path, longest_manifest), path).run;
  } catch (const Error&) {
    return {};
  }
}

void write_latest(const std::string& run_folder, int64_t step) {
  write_file_atomically(run_folder + "/latest", text("checkpoints/", prefix, step, "\n"));
}

void delete_step(const std::string& run_folder, int64_t step) {
  const std::string folder = step_folder(run_folder, step), trash = folder + ".trash-" + new_run_id();
  rename_path(folder, trash);
  sync_folder(checkpoints(run_folder));
  remove_tree(trash);
}

std::vector<std::string> retain(const std::string& run_folder, int64_t step, int64_t keep,
                                const std::vector<int64_t>& damaged) {
  std::vector<int64_t> steps = list_steps(run_folder);
  steps.erase(std::upper_bound(steps.begin(), steps.end(), step), steps.end());
  // What is older than the last `keep` good ones.
  int64_t good = 0;
  while (!steps.empty() && good < std::max<int64_t>(keep, 1)) {
    good += steps.back() == step || std::count(damaged.begin(), damaged.end(), steps.back()) == 0;
    steps.pop_back();
  }
  std::vector<std::string> warnings;
  for (const int64_t old : steps) try {
      delete_step(run_folder, old);
    } catch (const Error& error) {
      warnings.push_back(text("an old checkpoint stays: ", error.what(), " (", error.where, ")"));
    }
  return warnings;
}

std::vector<std::string> clean(const std::string& run_folder) {
  std::vector<std::string> removed;
  const auto remove_from = [&](const std::string& folder, auto leftover) {
    for (const std::string& name : list_folder(folder))
      if (leftover(name)) {
        remove_tree(folder + "/" + name);
        removed.push_back(folder + "/" + name);
      }
  };
  remove_from(checkpoints(run_folder), [](const std::string& name) {
    return name.starts_with(prefix) &&
           (name.find(".tmp-") != std::string::npos || name.find(".trash-") != std::string::npos);
  });
  remove_from(run_folder, [](const std::string& name) { return name.starts_with("latest.tmp-"); });
  return removed;
}

}  // namespace weft::ckpt
