#pragma once
// From YAML files and overrides to a checked Recipe.
//
// A file may begin with `extends: other.yaml`, a path relative to itself: the other file is read first, and
// keys here replace its keys. Overrides come last. Every error is Exit::recipe at "file:line:column" or
// "override a.b=c", before anything else of the run has started.

#include <string>
#include <vector>

#include "training/recipe/recipe.h"

namespace weft {

// overrides: "a.b=c" each. An empty `run` becomes runs/NAME. A path that is not a file is Exit::usage.
Recipe load_recipe(const std::string& path, const std::vector<std::string>& overrides = {});

// The same for text that is not in a file; source names it.
Recipe parse_recipe(const std::string& text, const std::string& source,
                    const std::vector<std::string>& overrides = {});

// Command-line words to overrides: "a.b=c", "--a.b=c" and "--a.b c" become "a.b=c". A word that is no
// override and a flag that is no key of the recipe are Exit::usage.
std::vector<std::string> split_overrides(const std::vector<std::string>& words);

}  // namespace weft
