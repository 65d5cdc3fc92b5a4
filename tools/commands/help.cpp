// `weft help`: what a recipe key, a mechanism's attributes or a command mean.

#include "training/recipe/help.h"

#include "attention/registry.h"
#include "tools/commands.h"
#include "tools/commands/json_line.h"
#include "tools/flags.h"

namespace weft {
namespace {

const std::string in_recipe = "model.mechanisms.";

std::string mechanism_help(const MechanismEntry& entry) {
  std::string out = in_recipe + entry.id + ": " + entry.title + ", " + entry.url + "\n";
  for (const FieldDescription& f : entry.describe()) {
    out += "  " + f.name + ": " + f.help + "\n    " + f.type;
    for (const std::string& more : {f.unit, f.range})
      if (!more.empty()) out += ", " + more;
    out += ", default " + (f.default_value.empty() ? "\"\"" : f.default_value) + "\n";
  }
  return out;
}

// A key of the recipe first, then a mechanism; what is neither is an error that names the nearest key or
// mechanism.
std::string help_text(const std::string& key) {
  if (key.starts_with(in_recipe)) return mechanism_help(find_mechanism(key.substr(in_recipe.size())));
  try {
    return recipe_help(key);
  } catch (const Error&) {
    std::vector<std::string> names;
    for (const MechanismEntry& entry : mechanisms()) {
      names.push_back(entry.id);
      names.insert(names.end(), entry.aliases.begin(), entry.aliases.end());
    }
    for (const std::string& name : names)
      if (name == key) return mechanism_help(find_mechanism(name));
    throw;
  }
}

}  // namespace

int run_help(const Words& words) {
  Flags flags(
      "help", "[KEY]",
      "Says what a recipe key (optim.lr), a section (optim), a mechanism (lightning) or a command means;\n"
      "without a name, which sections there are.");
  bool json = false;
  flags.add("--json", json, "one line, help/1");
  if (!flags.parse(words)) return 0;
  const std::string key = flags.argument(0);
  if (!json && find_command(key)) return find_command(key)->run({"--help"});
  const std::string text = help_text(key);
  if (json)
    print_line({{"weft", "help/1"}, {"exit", 0}, {"key", key}, {"text", text}});
  else
    print(text);
  return 0;
}

}  // namespace weft
