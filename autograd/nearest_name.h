#pragma once
// What a person who misspelt a name probably meant.

#include <string>
#include <vector>

namespace weft {

// Of a dotted name; the name itself where it has no dot.
std::string last_part(const std::string& name);
// The name most like a misspelt one, or empty if none is near. Dotted names match on their last part too.
std::string nearest_name(const std::string& name, const std::vector<std::string>& names);
// "did you mean X?" or, if nothing is near, "valid WHAT: A, B, C".
std::string suggest_name(const std::string& name, const std::vector<std::string>& names,
                         const std::string& what);

}  // namespace weft
