// `weft schema`: the recipe format, for editors and validators.

#include <nlohmann/json.hpp>

#include "tools/commands.h"
#include "tools/flags.h"
#include "training/recipe/help.h"

namespace weft {

int run_schema(const Words& words) {
  Flags flags("schema", "", "Prints the JSON Schema of a recipe file.");
  bool json = false;
  flags.add("--json", json, "in one line, as schema/1");
  if (!flags.parse(words)) return 0;
  using Json = nlohmann::ordered_json;
  print(json ? Json{{"weft", "schema/1"}, {"exit", 0}, {"schema", Json::parse(recipe_schema())}}.dump() + "\n" : recipe_schema());
  return 0;
}

}  // namespace weft
