#include <algorithm>

#include "tools/commands.h"
#include "tools/flags.h"
#include "tools/recipe_path.h"
#include "training/plan.h"
#include "training/recipe/load.h"

namespace weft {

int run_validate(const Words& words) {
  // Overrides of the recipe are words of their own, so the flags are taken out first.
  Words own, overrides;
  for (size_t i = 0; i < words.size(); ++i) {
    const bool flag = words[i] == "--json" || words[i] == "--help" || words[i].starts_with("--ranks") ||
                      words[i].starts_with("--device");
    if (flag || (own.empty() && !words[i].starts_with("-"))) {
      own.push_back(words[i]);
      if ((words[i] == "--ranks" || words[i] == "--device") && i + 1 < words.size())
        own.push_back(words[++i]);
    } else {
      overrides.push_back(words[i]);
    }
  }
  int64_t ranks = 1;
  std::string device = name_of(best_device());
  bool json = false;
  Flags flags("validate", "RECIPE",
              "Says what a run will need: parameters, memory, work, bytes sent. Overrides as in weft train.");
  flags.add("--ranks", ranks, "N", "ranks of the run", {.min = 1, .max = 1 << 20});
  flags.add("--device", device, "NAME", "cpu, cuda or h100-80; if not said, what a run here computes on");
  flags.add("--json", json, "one line of JSON (validate/1)");
  if (!flags.parse(own)) return 0;
  const Recipe recipe = load_recipe(recipe_path(flags.arguments()[0]), split_overrides(overrides));
  const RunPlan plan = plan_run(recipe, static_cast<int>(ranks), device);
  print(json ? to_json(plan) + "\n" : to_table(plan));
  return 0;
}

}  // namespace weft
