// `weft diff`: the keys in which two recipes or runs differ.

#include "training/recipe/diff.h"

#include "tools/commands.h"
#include "tools/commands/json_line.h"
#include "tools/flags.h"
#include "tools/recipe_path.h"
#include "training/recipe/load.h"

namespace weft {

int run_diff(const Words& words) {
  Flags flags("diff", "A B",
              "Prints the keys in which two recipes, or the recipes of two runs, differ. A * marks keys\n"
              "that a resumed run has to keep.");
  bool json = false;
  flags.add("--json", json, "one line of JSON, diff/1");
  if (!flags.parse(words)) return 0;
  const Recipe before = load_recipe(recipe_path(flags.argument(0)));
  const Recipe after = load_recipe(recipe_path(flags.argument(1)));
  std::string lines;
  nlohmann::ordered_json all = {
      {"weft", "diff/1"}, {"exit", 0}, {"differences", nlohmann::ordered_json::array()}};
  for (const RecipeDifference& d : recipe_diff(before, after)) {
    lines += (d.fixed ? "* " : "  ") + d.line() + "\n";
    all["differences"].push_back(
        {{"key", d.key}, {"before", d.before}, {"after", d.after}, {"fixed", d.fixed}});
  }
  json ? print_line(all) : print(lines);
  return 0;
}

}  // namespace weft
