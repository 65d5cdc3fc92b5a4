#pragma once
// Recipes as a person names them on the command line.

#include <string>

namespace weft {

// The folder that holds recipes/: the working directory, else the nearest folder above this program that has
// one, else share/weft beside the program's folder. Empty where there is none.
std::string recipe_root();

// The recipe of a mechanism, "" where there is none.
std::string mechanism_recipe(const std::string& root, const std::string& id);

// A file; a run folder, for the recipe in it; the name of a recipe; or a mechanism, for its recipe. Unknown
// is an Error (usage) with the nearest name.
std::string recipe_path(const std::string& name);

}  // namespace weft
