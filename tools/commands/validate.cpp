#include "tools/commands.h"
#include "tools/flags.h"
#include "tools/recipe_path.h"
#include "training/plan.h"
#include "training/recipe/load.h"

namespace weft {

int run_validate(const Words& words) {
  int64_t ranks = 1;
  std::string device = name_of(best_device());
  bool json = false;
  Flags flags(
      "validate", "RECIPE",
      "Shows what a run will need: parameters, memory, work, bytes sent. Overrides as in weft train.");
  flags.add("--ranks", ranks, "N", "ranks of the run", {.min = 1, .max = 1 << 20});
  flags.add("--device", device, "NAME", "cpu, cuda or h100-80; default: what a run here computes on");
  flags.add("--json", json, "one line of JSON, validate/1");
  Words own = words;
  const Words overrides = flags.take_overrides(own);
  if (!flags.parse(own)) return 0;
  const Recipe recipe = load_recipe(recipe_path(flags.arguments()[0]), split_overrides(overrides));
  const RunPlan plan = plan_run(recipe, static_cast<int>(ranks), device);
  print(json ? to_json(plan) + "\n" : to_table(plan));
  return 0;
}

}  // namespace weft
