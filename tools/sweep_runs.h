#pragma once
// The runs of a sweep, one after another, each in a process of its own.

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "training/recipe/recipe.h"

namespace weft {

struct SweepRun {
  std::string name;                    // "layers-gla_seed-1"
  std::string recipe_file;             // as `weft train` finds it
  std::vector<std::string> overrides;  // all of them, run=FOLDER last
  Recipe recipe;                       // the two together
};

struct SweepProgram {
  std::string path;         // of weft
  int ranks = 0;            // of each run, by weft launch; 0: without
  std::string device = {};  // of weft train --device; empty: as it chooses
};

// Its command: weft train RECIPE KEY=VALUE... --resume auto, on several ranks after weft launch -n.
std::vector<std::string> command_of(const SweepRun& run, const SweepProgram& program);

// Whether its folder has the checkpoint of the last step. Error (recipe) where the folder's recipe is another
// that this one may not continue.
bool is_finished(const SweepRun& run);

struct SweepResult {
  std::string status = {};   // done, finished before, failed, stopped, not started
  int code = 0;              // exit code of its process
  std::string failure = {};  // its error line
  int64_t step = 0;
  double loss = NAN, val_loss = NAN, val_bpb = NAN, seconds = NAN;
};

// In order; what is finished is skipped, what was begun goes on. A run that fails does not end the sweep, a
// signal does, after the run at hand has saved. Says on stderr where it stands.
std::vector<SweepResult> train_all(const std::vector<SweepRun>& runs, const SweepProgram& program);

}  // namespace weft
