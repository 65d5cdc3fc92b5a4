#pragma once
// `weft validate`: what a run will need, from its first step on the meta device: shapes only, no accelerator.
// It reads of the data only where that step's documents end; without data each sample counts as one document.

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
  int64_t micro_tokens = 0;      // that a rank handles at once
  double step_flops = 0;         // of the rank that works most
  double step_s = 0, eta_s = 0;  // NaN where the device's speed is unknown
  std::vector<std::string> warnings;
};

class FirstBatch;

// Plans of several models over the same text, which is read once.
class Planner {
 public:
  // Takes the recipe's data, context and seed; they have to be those of all recipes planned later.
  explicit Planner(const Recipe& recipe);

  // device: cpu, cuda or h100-80. Errors: those of the recipe.
  RunPlan plan(const Recipe& recipe, int ranks, const std::string& device = "cpu") const;
  const Tokenizer& tokenizer() const { return *tokenizer_; }

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<std::string> unread_;  // why the text was not read
  std::shared_ptr<const FirstBatch> batch_;
};

// Recipes with the same key have the same plan, but for what their seeds draw and for steps.
std::string plan_key(Recipe recipe);

// One plan alone.
RunPlan plan_run(const Recipe& recipe, int ranks, const std::string& device);

// The cheapest change of the recipe with which a rank needs at most so many bytes, as advice: "set
// micro_tokens=2048, which needs 301 MiB".
std::string change_that_fits(const Recipe& recipe, int ranks, int64_t bytes);

std::string to_json(const RunPlan& plan);   // validate/1
std::string to_table(const RunPlan& plan);  // for people

}  // namespace weft
