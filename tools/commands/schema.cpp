// `weft schema`: the recipe format, for editors and validators.

#include "tools/commands.h"
#include "tools/commands/json_line.h"
#include "tools/flags.h"
#include "training/recipe/help.h"

namespace weft {

int run_schema(const Words& words) {
  Flags flags("schema", "", "Prints the JSON Schema of a recipe file.");
  bool json = false;
  flags.add("--json", json, "one line of JSON, schema/1");
  if (!flags.parse(words)) return 0;
  if (json)
    print_line(
        {{"weft", "schema/1"}, {"exit", 0}, {"schema", nlohmann::ordered_json::parse(recipe_schema())}});
  else
    print(recipe_schema());
  return 0;
}

}  // namespace weft
