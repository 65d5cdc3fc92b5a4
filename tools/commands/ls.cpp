// `weft ls`: mechanisms with what each can do, recipes, tasks.

#include "tools/commands.h"
#include "tools/commands/json_line.h"
#include "tools/flags.h"
#include "tools/recipe_path.h"
#include "tools/recipe_sizes.h"
#include "tools/text_table.h"
#include "training/eval.h"
#include "training/model_size.h"
#include "training/recipe/find.h"
#include "training/recipe/load.h"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;

Json crosses(const std::vector<PartCall>& calls) {
  Json list = Json::array();
  for (const PartCall& call : calls)
    list.push_back({{"kind", name_of(call.kind)},
                    {"bytes", call.bytes},
                    {"per", call.kind == PartKind::merge ? "token" : "border"}});
  return list;
}

// One broken recipe hides nothing else: the mechanism is then shown at the sizes of a recipe without any
// keys.
Json describe(const MechanismEntry& entry, const std::string& root) {
  const std::string path = mechanism_recipe(root, entry.id);
  MechanismSize size = size_in({}, entry);
  std::string wrong;
  try {
    if (!path.empty()) size = size_in(load_recipe(path), entry);
  } catch (const Error& error) {
    wrong = error.what();
  }
  const MechanismFacts facts = learn(entry, size);
  Json devices = {{"cpu", form_on(Device::cpu, facts.calls)}, {"cuda", nullptr}};
#ifdef WEFT_CUDA
  devices["cuda"] = form_on(Device::cuda, facts.calls);
#endif
  Json row = {{"id", entry.id},
              {"aliases", entry.aliases},
              {"kinds", facts.kinds()},
              {"causal", facts.causal},
              {"bidirectional", facts.bidirectional},
              {"streaming", facts.streaming},
              {"state_bytes", facts.streaming ? Json(facts.state_bytes) : Json()},
              {"crosses", crosses(facts.calls)},
              {"devices", devices},
              {"dtypes", facts.dtypes},
              {"context_parallel", {{"contiguous", facts.contiguous}, {"zigzag", facts.zigzag}}},
              {"paper", {{"title", entry.title}, {"url", entry.url}}},
              {"recipe", path.empty() ? Json() : Json(path)}};
  if (!wrong.empty()) row["error"] = wrong;
  return row;
}

Json describe(const RecipeEntry& entry) {
  Json row = {
      {"name", entry.name}, {"path", entry.path}, {"parameters", nullptr}, {"summary", entry.summary}};
  try {
    const Recipe recipe = load_recipe(entry.path);
    const int64_t vocab = recipe.model.vocab;
    row["parameters"] =
        count_parameters(recipe, vocab > 0 ? vocab : vocabulary_of(recipe, *open_tokenizer(recipe)));
  } catch (const Error& error) {
    row["error"] = error.what();
  }
  return row;
}

std::string with_unit(double number, double step, const std::vector<const char*>& units) {
  size_t unit = 0;
  while (number >= step && unit + 1 < units.size()) number /= step, ++unit;
  char out[32];
  std::snprintf(out, sizeof out, unit == 0 ? "%.0f %s" : "%.1f %s", number, units[unit]);
  return out;
}

std::string joined(const Json& texts, const char* between) {
  std::string out;
  for (const Json& text : texts) out += (out.empty() ? "" : between) + text.get<std::string>();
  return out;
}

// "tasks/  induction listops ...": a line a folder. Those of mechanisms go by the mechanism's name.
std::string folders(const std::string& root) {
  std::string out, folder;
  for (const std::string& name : recipes_in_folders(root)) {
    const size_t slash = name.find('/') + 1;
    if (name.starts_with("mechanisms/")) continue;
    if (name.substr(0, slash) != folder) out += "\n  " + (folder = name.substr(0, slash)) + " ";
    out += " " + name.substr(slash);
  }
  return out.empty() ? out : out.substr(1) + "\n";
}

std::string readable(const Json& all, const std::string& root) {
  std::vector<Words> rows{{"MECHANISM", "PARTS", "SEES", "STATE", "CPU", "CUDA", "RANKS", "ALSO CALLED"}};
  for (const Json& m : all["mechanisms"]) {
    const bool causal = m["causal"], bidirectional = m["bidirectional"];
    rows.push_back(
        {m["id"], joined(m["kinds"], "+"),
         causal && bidirectional ? "past or all"
         : causal                ? "past"
                                 : "all",
         m["state_bytes"].is_null() ? "-" : with_unit(m["state_bytes"], 1024, {"B", "KiB", "MiB", "GiB"}),
         m["devices"]["cpu"], m["devices"]["cuda"].is_null() ? "-" : m["devices"]["cuda"],
         joined(m["context_parallel"]["contiguous"], " "), joined(m["aliases"], ", ")});
  }
  std::string out = text_table(rows);
  rows = {{"RECIPE", "PARAMETERS", ""}};
  for (const Json& r : all["recipes"])
    rows.push_back(
        {r["name"], r["parameters"].is_null() ? "-" : with_unit(r["parameters"], 1000, {"", "K", "M", "G"}),
         r.contains("error") ? "broken: " + r["error"].get<std::string>() : r["summary"].get<std::string>()});
  if (rows.size() > 1) out.append("\n").append(text_table(rows)).append(folders(root));
  if (!all["tasks"].empty()) out += "\n  TASKS  " + joined(all["tasks"], " ") + "\n";
  return out +
         "\n  STATE: what one layer keeps of one document to decode, at the recipe's context\n"
         "  CPU, CUDA: fused = kernels of its own, derived = composed from basic ops, - = not in this "
         "build\n";
}

}  // namespace

int run_ls(const Words& words) {
  Flags flags("ls", "", "Lists mechanisms with what each can do, recipes, and tasks.");
  bool json = false;
  flags.add("--json", json, "one line of JSON, ls/1");
  if (!flags.parse(words)) return 0;
  const std::string root = recipe_root();
  Json all = {{"weft", "ls/1"},
              {"exit", 0},
              {"mechanisms", Json::array()},
              {"recipes", Json::array()},
              {"tasks", Json::array()}};
  for (const MechanismEntry& entry : mechanisms()) all["mechanisms"].push_back(describe(entry, root));
  for (const TaskEntry& entry : tasks()) all["tasks"].push_back(entry.id);
  all["tasks"].push_back(kTextTask);
  for (const RecipeEntry& entry : list_recipes(root)) all["recipes"].push_back(describe(entry));
  json ? print_line(all) : print(readable(all, root));
  return 0;
}

}  // namespace weft
