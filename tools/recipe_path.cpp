#include "tools/recipe_path.h"

#include <filesystem>

#include "attention/registry.h"
#include "training/recipe/find.h"

namespace weft {

namespace fs = std::filesystem;

std::string recipe_root() {
  std::error_code failed;
  if (!list_recipes(".").empty()) return ".";
  const fs::path program = fs::read_symlink("/proc/self/exe", failed);
  for (fs::path folder = program.parent_path(); folder.has_relative_path(); folder = folder.parent_path())
    for (const fs::path& root : {folder, folder / "share" / "weft"})
      if (!list_recipes(root).empty()) return root;
  return {};
}

std::string mechanism_recipe(const std::string& root, const std::string& id) {
  const fs::path path = fs::path(root) / "recipes" / "mechanisms" / (id + ".yaml");
  std::error_code failed;
  return fs::is_regular_file(path, failed) ? path.string() : "";
}

std::string recipe_path(const std::string& name) {
  std::error_code failed;
  const std::string in_run = fs::path(name) / "recipe.yaml";
  if (fs::is_regular_file(in_run, failed)) return in_run;
  const std::string root = recipe_root();
  try {
    return find_recipe(name, root);
  } catch (const Error&) {
    for (const MechanismEntry& entry : mechanisms()) {
      bool meant = entry.id == name;
      for (const std::string& alias : entry.aliases) meant |= alias == name;
      const std::string path = meant ? mechanism_recipe(root, entry.id) : "";
      if (!path.empty()) return path;
    }
    throw;
  }
}

}  // namespace weft
