// `weft help`: what a recipe key, a mechanism's attributes, a task's settings or a command mean.

#include "training/recipe/help.h"

#include <algorithm>

#include "attention/registry.h"
#include "autograd/field_value.h"
#include "autograd/nearest_name.h"
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

const char* const extends_help =
    "extends: another recipe that this one builds on; a path relative to this file\n"
    "  type     path\n  default  none\n";

std::string mechanism_help(const MechanismEntry& entry) {
  return settings_help(in_recipe + entry.id + ": " + entry.title + ", " + entry.url, entry.describe({}));
}

std::string attribute_help(const MechanismEntry& entry, const std::string& name) {
  std::vector<std::string> names;
  for (const FieldDescription& f : entry.describe({})) {
    if (f.name == name) return settings_help(in_recipe + entry.id, {f});
    names.push_back(f.name);
  }
  throw Error(Exit::usage, "there is no key " + shown(in_recipe + entry.id + "." + name), "",
              suggest_name(name, names, "attributes"));
}

// A key of the recipe first, then a mechanism, then a task; what is none is an error that names the nearest
// of all that help explains.
std::string key_help(const std::string& key) {
  if (key.starts_with(in_recipe)) {
    const std::string name = key.substr(in_recipe.size());
    const size_t dot = name.find('.');
    const MechanismEntry& entry = find_mechanism(name.substr(0, dot));
    return dot == name.npos ? mechanism_help(entry) : attribute_help(entry, name.substr(dot + 1));
  }
  if (key == "extends") return extends_help;
  std::vector<std::string> known = recipe_names();
  if (key.empty() || std::find(known.begin(), known.end(), key) != known.end()) return recipe_help(key);
  for (const MechanismEntry& entry : mechanisms()) {
    if (key == entry.id || std::find(entry.aliases.begin(), entry.aliases.end(), key) != entry.aliases.end())
      return mechanism_help(entry);
    known.push_back(entry.id);
    known.insert(known.end(), entry.aliases.begin(), entry.aliases.end());
  }
  for (const TaskEntry& task : tasks()) {
    if (key == task.id)
      return settings_help(
          key + ": " + task.title + ", " + task.url + "; data.task: " + key + " KEY=VALUE ...",
          task.describe());
    known.push_back(task.id);
  }
  if (key == kTextTask)
    return settings_help(key + ": the next token of text; weft eval RUN --task \"" + key + " KEY=VALUE ...\"",
                         describe_text_task());
  known.insert(known.end(), {"extends", kTextTask});
  for (const Command& command : commands()) known.emplace_back(command.name);
  const std::string nearest = nearest_name(key, known);
  throw Error(Exit::usage, "there is no key, mechanism, task or command " + shown(key), "",
              nearest.empty()
                  ? "`weft help` lists keys, `weft ls` mechanisms and tasks, `weft --help` commands"
                  : "did you mean " + nearest + "?");
}

// `eval` is a command and a section.
std::string help_text(const std::string& name) {
  const Command* command = find_command(name);
  if (command == nullptr) return key_help(name);
  const std::string usage = printed_by([&] { command->run({"--help"}); });
  try {
    return usage + "\nIn a recipe:\n" + key_help(name);
  } catch (const Error&) {
    return usage;
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
  flags.add("--json", json, "one line of JSON, help/1");
  if (!flags.parse(words)) return 0;
  const std::string key = flags.argument(0);
  const std::string text = help_text(key);
  if (json)
    print_line({{"weft", "help/1"}, {"exit", 0}, {"key", key}, {"text", text}});
  else
    print(text);
  return 0;
}

}  // namespace weft
