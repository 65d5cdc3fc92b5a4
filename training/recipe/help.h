#pragma once
// The recipe's documentation, from the same list of fields that reads it.

#include <string>
#include <vector>

namespace weft {

// What a key means, its unit, default and range; a section ("optim") lists its keys, "" lists all sections.
// Unknown is Exit::usage with the nearest key.
std::string recipe_help(const std::string& key);

// The names it knows, keys before sections.
std::vector<std::string> recipe_names();

// JSON Schema (2020-12) of a recipe file, for editors and validators.
std::string recipe_schema();

}  // namespace weft
