#pragma once
// `weft validate`: what a run will need, from its first step on the meta device: shapes only, no accelerator.
// Of the data only where the documents of that step end; without data each sample counts as one document.

#include <string>
#include <vector>

#include "training/trainer.h"

namespace weft {

struct RunPlan {
  int64_t parameters = 0, active_parameters = 0;
  double flops_per_token = 0;  // forward and backward
  int64_t tokens_per_step = 0, steps = 0, tokens = 0;
  MeshShape mesh;
  int64_t peak_bytes = 0;                               // of the rank that needs most
  std::vector<std::pair<std::string, int64_t>> scopes;  // at the peak, largest first
  WireBytes wire;                                       // bytes that rank 0 sends in the first step
  int64_t checkpoint_bytes = 0;
  double step_s = 0, eta_s = 0;  // NaN where the device's speed is unknown
  std::vector<std::string> warnings;
};

// device: cpu, or h100-80. Errors: those of the recipe.
RunPlan plan_run(const Recipe& recipe, int ranks, const std::string& device);

std::string to_json(const RunPlan& plan);   // validate/1
std::string to_table(const RunPlan& plan);  // for people

}  // namespace weft
