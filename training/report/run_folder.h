#pragma once
// What a run folder tells: its recipe, its steps, its last sample, where it ran. Runs that still go on and
// folders with damaged or missing files are read as far as they go.

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "training/recipe/recipe.h"

namespace weft {

struct RunPoint {
  int64_t step = 0, tokens = 0;
  double hours = 0;  // of all steps up to here; evaluation, saving and pauses between starts do not count
  // As in metrics.jsonl, NaN where it has null or nothing. Losses in nats a token.
  double loss = NAN, grad_norm = NAN, lr = NAN, tokens_per_s = NAN, val_loss = NAN, val_bpb = NAN;
  double val_accuracy = NAN, val_exact = NAN;  // of a task
  bool refused = false;                        // the step changed no weight
};

enum class RunStatus { done, running, stopped, failed, broken };
const char* name_of(RunStatus status);

struct RunData {
  std::string folder, name;
  // running: not done, and written to within the last two minutes; failed: the sweep that started it noted
  // why, or its last steps were all refused; broken: no recipe, or no steps although it is silent.
  RunStatus status = RunStatus::broken;
  std::optional<Recipe> recipe;
  std::vector<RunPoint> points;  // by step; a step that came again counts as it came last
  double last_write = NAN;       // seconds since 1970
  std::vector<std::pair<std::string, std::string>> environment;  // of environment.json, flat
  int64_t sample_step = 0;
  std::string sample;
  std::vector<std::string> problems;  // a line each
};

// now: seconds since 1970. Never throws for what the folder holds.
RunData read_run(const std::string& folder, double now);

// The run folders that a person means: the folder itself, or where it is none, those in it, by name. Error
// (no_checkpoint) where there are none.
std::vector<std::string> run_folders(const std::string& path);

}  // namespace weft
