#pragma once
// Recipes by name.

#include <string>
#include <vector>

namespace weft {

struct RecipeEntry {
  std::string name;     // "quickstart"
  std::string path;     // "ROOT/recipes/quickstart.yaml"
  std::string summary;  // the first comment line of the file
};

// The recipes under ROOT/recipes, by name; none where the folder is missing.
std::vector<RecipeEntry> list_recipes(const std::string& root);

// Those in the folders of ROOT/recipes, as FOLDER/NAME ("124m/softmax"), sorted.
std::vector<std::string> recipes_in_folders(const std::string& root);

// The path of a recipe: `name` itself where it is a file, else ROOT/recipes/NAME.yaml, where NAME may begin
// with a folder. Unknown is Exit::usage.
std::string find_recipe(const std::string& name, const std::string& root);

}  // namespace weft
