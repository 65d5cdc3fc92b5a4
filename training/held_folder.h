#pragma once
// A run's folder, held against other jobs while the run trains.

#include <functional>
#include <optional>
#include <string>

#include "training/checkpoint/lock.h"
#include "training/recipe/recipe.h"

namespace weft {

class HeldFolder {
 public:
  // Of an existing folder, recipe.run. Errors: Exit::cannot_create where another job holds it.
  explicit HeldFolder(const Recipe& recipe);

  const std::string& note() const { return lock_->note(); }  // to print, if not empty

  // Before a save. A folder that was moved away may have given its place to another run, whose checkpoints
  // are none of `run`: Exit::cannot_create. Where it gave it to none, a new one is made, with the recipe
  // without which nobody could use what is saved there.
  void ensure_ours(const std::string& run, const std::function<void(const std::string&)>& warn);

 private:
  const Recipe& recipe_;
  std::optional<ckpt::RunLock> lock_;
};

}  // namespace weft
