#pragma once
// The settings of a model's mechanisms, defaults included, except those that change only speed. A checkpoint
// keeps them: a default may change in a later version, and a run that does not name the setting would
// silently continue as another function.

#include <map>
#include <string>

#include "training/recipe/recipe.h"

namespace weft {

using MechanismSettings = std::map<std::string, std::map<std::string, std::string>>;  // by id and attribute

MechanismSettings mechanism_settings(const Recipe& recipe);
bool same_function(const Recipe& a, const Recipe& b);  // of models of the same layers

// Error (recipe) for an attribute that had another value when `kept` was written. An attribute that only one
// of the two has is no difference: a version may know more attributes, or keep what changes speed.
void require_settings(const MechanismSettings& kept, const Recipe& recipe);

}  // namespace weft
