#pragma once
// All mechanisms, by name.

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "attention/mechanism.h"

namespace weft {

struct MechanismEntry {
  std::string id;
  std::vector<std::string> aliases;
  std::string title, url;  // of the paper
  // Settings, as "attr=value ...", that the conformance suite runs besides the defaults.
  std::vector<std::string> variants;
  // attributes: a map value, or none for all defaults. Wrong ones are an Error (recipe) with their place.
  std::function<std::unique_ptr<Mechanism>(const FieldValue& attributes, const Dimensions&,
                                           const ParameterScope&)>
      make;
  // Each default_value is what these attributes make of it.
  std::function<std::vector<FieldDescription>(const FieldValue& attributes)> describe;
};

const std::vector<MechanismEntry>& mechanisms();
// By id or alias; an unknown name is an Error (usage) with the nearest one.
const MechanismEntry& find_mechanism(const std::string& name);

// "a=1 b=rope" or {"a=1", ...} as a map value.
FieldValue parse_attributes(const std::vector<std::string>& settings);
std::vector<std::string> split_settings(std::string_view settings);

}  // namespace weft
