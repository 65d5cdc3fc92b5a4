#pragma once
// YAML text as a tree that remembers lines. A strict subset: one document of maps, lists and scalars.
// Anchors, aliases, tags and keys that are not text are refused, and so is whatever could exhaust time or
// memory.

#include <string>

#include "autograd/field_value.h"

namespace weft {

inline constexpr size_t kMaxRecipeBytes = 10'000'000;
inline constexpr int kMaxRecipeDepth = 32;  // of maps and lists in each other

// source names the text in places ("r.yaml"). An empty document is an empty map.
// Throws Exit::recipe at "source:line:column".
FieldValue parse_yaml(const std::string& text, const std::string& source);

// Throws Exit::recipe unless text is UTF-8 without control characters other than tab and line ends.
void check_utf8(const std::string& text, const std::string& source);

}  // namespace weft
