#include "training/held_folder.h"

#include <filesystem>

#include "autograd/check.h"
#include "training/checkpoint/files.h"
#include "training/checkpoint/folder.h"
#include "training/recipe/diff.h"

namespace weft {

namespace fs = std::filesystem;

HeldFolder::HeldFolder(const Recipe& recipe) : recipe_(recipe), lock_(std::in_place, recipe.run) {}

void HeldFolder::ensure_ours(const std::string& run, const std::function<void(const std::string&)>& warn) {
  const std::string folder = recipe_.run;
  std::error_code unknown;
  const bool there = fs::exists(folder + "/recipe.yaml", unknown), held = lock_ && lock_->holds();
  if (there && held) return;
  if (!held) lock_.reset();
  if (there) {
    lock_.emplace(folder);  // or it is in use
    if (const std::string other = ckpt::latest_run(folder); !other.empty() && other != run)
      throw Error(Exit::cannot_create, "another run has taken the place of the run's folder", folder,
                  "continue this one from where its folder is now");
    return;
  }
  warn(held ? "recipe.yaml of the run was removed while the run used it: it is written again"
            : "the run folder was moved or removed while the run used it: checkpoints go to a new one, " +
                  folder + ", without the log so far");
  fs::create_directories(folder, unknown);
  try {
    if (!held) lock_.emplace(folder);
    write_file_atomically(folder + "/recipe.yaml", resolved_recipe(recipe_));
  } catch (const Error& e) {
    if (!lock_ && e.code == Exit::cannot_create && fs::exists(folder + "/lock", unknown)) throw;  // in use
    warn(e.what());  // no more than the checkpoint itself will meet, together with the other ranks
  }
}

}  // namespace weft
