#pragma once
// `weft train`: a run from its recipe to its last checkpoint.

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "training/trainer.h"

namespace weft {

struct TrainOptions {
  bool resume = false;       // continue the run in recipe.run
  bool resume_auto = false;  // continue it if there is one, else start
  std::vector<std::string> command_line = {};
  int64_t* step = nullptr;  // receives the current step, from 1, for the report of a failure
  bool quiet = false;       // nothing on the console, and no baseline to compare with there
};

// A run whose last steps, as many as these or all it has, changed no weight is not done.
constexpr int64_t kRefusedAtTheEnd = 3;

struct TrainSummary {
  Exit exit = Exit::ok;
  std::string run, status;  // done or stopped
  int64_t step = 0, steps = 0, tokens = 0;
  // NaN: not measured, such as the loss of a resumed run that had no step left.
  double loss = NAN, val_loss = NAN, val_bpb = NAN, baseline_bpb = NAN, grad_norm = NAN, tokens_per_s = NAN;
  double mfu = NAN;
  double val_accuracy = NAN, val_exact = NAN;  // of a task
  double seconds = 0, first_step_s = 0;
  int64_t peak_bytes = 0;
  int world = 1;
  MeshShape mesh;
  std::string weights_hash, order_hash, sample;
  WireBytes wire;
};

// Collective over world (null: one rank). Errors carry the exit code of docs/contract.md.
TrainSummary train(const Recipe& recipe, const TrainOptions& options, Communicator* world);

// One line of JSON, train/1.
std::string to_json(const TrainSummary& summary);

}  // namespace weft
