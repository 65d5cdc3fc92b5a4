#include "training/recipe/find.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "autograd/check.h"
#include "autograd/field_value.h"
#include "autograd/nearest_name.h"

namespace weft {

namespace {

namespace fs = std::filesystem;

// The first comment line that says something, if the file begins with comments.
std::string summary_of(const fs::path& path) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty()) continue;
    if (line[0] != '#') break;
    const size_t start = line.find_first_not_of("# ");
    if (start != std::string::npos) return line.substr(start);
  }
  return {};
}

}  // namespace

std::vector<RecipeEntry> list_recipes(const std::string& root) {
  std::vector<RecipeEntry> recipes;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(fs::path(root) / "recipes", error)) {
    const fs::path& path = entry.path();
    if (path.extension() == ".yaml" && entry.is_regular_file(error))
      recipes.push_back({path.stem().string(), path.string(), summary_of(path)});
  }
  std::sort(recipes.begin(), recipes.end(),
            [](const RecipeEntry& a, const RecipeEntry& b) { return a.name < b.name; });
  return recipes;
}

std::vector<std::string> recipes_in_folders(const std::string& root) {
  std::vector<std::string> names;
  std::error_code error;
  for (const fs::directory_entry& folder : fs::directory_iterator(fs::path(root) / "recipes", error)) {
    if (!folder.is_directory(error)) continue;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder.path(), error))
      if (entry.path().extension() == ".yaml" && entry.is_regular_file(error))
        names.push_back(folder.path().filename().string() + "/" + entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string find_recipe(const std::string& name, const std::string& root) {
  std::error_code error;
  if (fs::is_regular_file(name, error)) return name;
  const std::string wanted = name.ends_with(".yaml") ? name.substr(0, name.size() - 5) : name;
  std::vector<std::string> names;
  for (const RecipeEntry& recipe : list_recipes(root)) names.push_back(recipe.name);
  const std::vector<std::string> inner = recipes_in_folders(root);
  if (std::count(names.begin(), names.end(), wanted) + std::count(inner.begin(), inner.end(), wanted) > 0)
    return (fs::path(root) / "recipes" / (wanted + ".yaml")).string();
  if (fs::exists(name, error))  // a pipe, too: a recipe is read more than once, by each rank
    throw Error(Exit::usage, "this is not a recipe file", shown(name),
                fs::is_directory(name, error) ? "name a recipe, or a run" : "save the recipe in a file");
  std::string near = nearest_name(wanted, inner);
  for (const std::string& known : inner)
    if (near.empty() && known.ends_with("/" + wanted)) near = known;
  throw Error(Exit::usage, "there is no recipe of this name", shown(name),
              near.empty() ? suggest_name(fs::path(wanted).filename().string(), names, "recipes")
                           : "did you mean " + near + "?");
}

}  // namespace weft
