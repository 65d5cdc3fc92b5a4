// `weft help`: what a recipe key, a mechanism's attributes, a task's settings or a command mean.

#include "training/recipe/help.h"

#include "attention/registry.h"
#include "tools/commands.h"
#include "tools/commands/json_line.h"
#include "tools/flags.h"
#include "training/eval.h"
#include "training/tasks/registry.h"

namespace weft {
namespace {

const std::string in_recipe = "model.mechanisms.";

std::string settings_help(const std::string& head, const std::vector<FieldDescription>& settings) {
  std::string out = head + "\n";
  for (const FieldDescription& f : settings) {
    out += "  " + f.name + ": " + f.help + "\n    " + f.type;
    for (const std::string& more : {f.unit, f.range})
      if (!more.empty()) out += ", " + more;
    out += ", default " + (f.default_value.empty() ? "\"\"" : f.default_value) + "\n";
  }
  return out;
}

std::string mechanism_help(const MechanismEntry& entry) {
  return settings_help(in_recipe + entry.id + ": " + entry.title + ", " + entry.url, entry.describe({}));
}

// A key of the recipe first, then a mechanism, then a task; what is none is an error that names the nearest
// key.
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
    for (const TaskEntry& task : tasks())
      if (task.id == key)
        return settings_help(
            key + ": " + task.title + ", " + task.url + "; data.task: " + key + " KEY=VALUE ...",
            task.describe());
    if (key == kTextTask)
      return settings_help(
          key + ": the next token of text; weft eval RUN --task \"" + key + " KEY=VALUE ...\"",
          describe_text_task());
    throw;
  }
}

}  // namespace

int run_help(const Words& words) {
  Flags flags(
      "help", "[KEY]",
      "Explains a recipe key (optim.lr), a section (optim), a mechanism (lightning), a task (mqar) or a "
      "command.\n"
      "Without a name it lists the keys and sections of a recipe.");
  bool json = false;
  flags.add("--json", json, "one line, help/1");
  if (!flags.parse(words)) return 0;
  const std::string key = flags.argument(0);
  if (!json && find_command(key)) {
    try {  // eval is a section too
      print(recipe_help(key) + "\n");
    } catch (const Error&) {
    }
    return find_command(key)->run({"--help"});
  }
  const std::string text = help_text(key);
  if (json)
    print_line({{"weft", "help/1"}, {"exit", 0}, {"key", key}, {"text", text}});
  else
    print(text);
  return 0;
}

}  // namespace weft
