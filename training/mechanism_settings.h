#pragma once
// What the mechanisms of a model are set to, defaults included, but for what changes speed alone. A
// checkpoint keeps it: a default may be another in the next version, and a run that names it nowhere would go
// on as another function, without a word.

#include <map>
#include <string>

#include "training/recipe/recipe.h"

namespace weft {

using MechanismSettings = std::map<std::string, std::map<std::string, std::string>>;  // by id and attribute

MechanismSettings mechanism_settings(const Recipe& recipe);
bool same_function(const Recipe& a, const Recipe& b);  // of models of the same layers

// Error (recipe) for an attribute that was something else when `kept` was written. What one of the two does
// not have is no difference: a version may know more attributes, or keep what changes speed.
void require_settings(const MechanismSettings& kept, const Recipe& recipe);

}  // namespace weft
