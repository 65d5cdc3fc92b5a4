#include "tools/zoo.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "attention/registry.h"
#include "autograd/nearest_name.h"
#include "tools/command.h"
#include "tools/recipe_sizes.h"
#include "training/checkpoint/files.h"
#include "training/checkpoint/hash.h"
#include "training/eval.h"
#include "training/log/environment_file.h"
#include "training/log/stop_request.h"
#include "training/recipe/diff.h"
#include "training/recipe/find.h"
#include "training/recipe/load.h"
#include "training/train.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// What a run that diverged counts as: a byte told by chance, and a gradient without bound.
constexpr double kWorstBits = 8, kWorstPeak = 1e6;

std::string today() {
  const std::time_t now = std::time(nullptr);
  char out[16];
  std::strftime(out, sizeof out, "%Y-%m-%d", std::localtime(&now));
  return out;
}

double number_of(const Json& value, double none) { return value.is_number() ? value.get<double>() : none; }

// What is not finite becomes null where this is written.
Json to_json(const ZooResult& r) {
  return {{"task", r.cell.task},
          {"mechanism", r.cell.mechanism},
          {"width", r.cell.width},
          {"rate", r.cell.rate},
          {"seed", r.cell.seed},
          {"metric", r.metric},
          {"value", r.value},
          {"n", r.n},
          {"chance", r.chance},
          {"diverged", r.diverged},
          {"grad_peak", r.grad_peak},
          {"loss", r.loss},
          {"parameters", r.parameters},
          {"seconds", r.seconds},
          {"recipe_hash", r.recipe_hash},
          {"commit", r.commit},
          {"date", r.date}};
}

ZooResult read_result(const std::string& path) {
  try {
    const Json j = Json::parse(read_text_file(path, 1 << 20));
    ZooResult r;
    r.cell = {j.at("task"), j.at("mechanism"), j.at("width"), j.at("rate"), j.at("seed")};
    r.metric = j.at("metric");
    r.value = j.at("value");
    r.n = j.at("n");
    r.chance = number_of(j.at("chance"), NAN);
    r.diverged = j.at("diverged");
    r.grad_peak = number_of(j.at("grad_peak"), kWorstPeak);
    r.loss = number_of(j.at("loss"), NAN);
    r.parameters = j.at("parameters");
    r.seconds = j.at("seconds");
    r.recipe_hash = j.at("recipe_hash");
    r.commit = j.at("commit");
    r.date = j.at("date");
    return r;
  } catch (const Json::exception& e) {
    throw Error(Exit::data, text("is not a result of the zoo: ", e.what()), path,
                "remove it, and it will be made again");
  }
}

// The largest gradient norm after the warm-up over the median one.
double grad_peak(const std::string& metrics, int64_t warmup) {
  std::vector<double> norms;
  std::ifstream file(metrics);
  for (std::string line; std::getline(file, line);) {
    const Json j = Json::parse(line, nullptr, false);
    if (j.is_object() && j.contains("grad_norm") && j["step"].get<int64_t>() > warmup)
      norms.push_back(number_of(j["grad_norm"], INFINITY));
  }
  if (norms.empty()) return NAN;
  std::sort(norms.begin(), norms.end());
  return std::min(kWorstPeak, norms.back() / norms[norms.size() / 2]);
}

// Of the first layer, after an example of the recipe's task, or a context of text.
int64_t state_of(const Recipe& recipe) {
  const MechanismEntry& entry = find_mechanism(model_config(recipe, 1).layers.front());
  MechanismSize size = size_in(recipe, entry);
  if (!recipe.data.task.empty()) size.tokens = 0;
  const auto tokenizer = open_tokenizer(recipe);
  for (const TaskText& task : task_texts(recipe, "data.task", recipe.data.task))
    size.tokens = std::max(size.tokens, task.make(*tokenizer)->length());
  return state_bytes(entry, size);
}

// What the zoo is made of, from the options.
struct Zoo {
  ZooOptions options;
  const ZooSize* size = nullptr;
  std::map<std::string, std::string> recipes;  // task -> path

  Zoo(ZooOptions given, const std::string& root) : options(std::move(given)) {
    std::vector<std::string> sizes;
    for (const ZooSize& s : zoo_sizes()) {
      if (s.name == options.size) size = &s;
      sizes.push_back(s.name);
    }
    if (size == nullptr)
      throw Error(Exit::usage, "there is no size " + options.size, "--size",
                  suggest_name(options.size, sizes, "sizes"));
    std::vector<std::string> tasks, mechanisms;
    std::error_code absent;
    for (const auto& file : fs::directory_iterator(fs::path(root) / "recipes" / size->recipes, absent))
      if (file.path().extension() == ".yaml") recipes[file.path().stem()] = file.path();
    for (const auto& [task, path] : recipes) tasks.push_back(task);
    for (const ZooMechanism& m : zoo_mechanisms()) mechanisms.push_back(m.name);
    check(options.tasks, tasks, "--tasks", "tasks");
    check(options.mechanisms, mechanisms, "--mechanisms", "mechanisms");
    if (options.widths.empty()) options.widths = size->widths;
    if (options.rates.empty()) options.rates = size->rates;
    if (options.folder.empty()) options.folder = "runs/zoo-" + size->name;
  }

  static void check(std::vector<std::string>& wanted, const std::vector<std::string>& known, const char* flag,
                    const char* what) {
    if (wanted.empty()) wanted = known;
    for (const std::string& name : wanted)
      if (std::find(known.begin(), known.end(), name) == known.end())
        throw Error(Exit::usage, "not in the zoo: " + name, flag, suggest_name(name, known, what));
  }

  // Seed after seed, so that a zoo cut short has compared all mechanisms.
  std::vector<ZooCell> cells() const {
    std::vector<ZooCell> all;
    for (const int64_t seed : options.seeds)
      for (const std::string& task : options.tasks)
        for (const std::string& mechanism : options.mechanisms)
          for (const int64_t width : options.widths)
            for (const double rate : options.rates) all.push_back({task, mechanism, width, rate, seed});
    return all;
  }

  std::string file(const ZooCell& cell) const { return options.folder + "/cells/" + cell.name() + ".json"; }

  Recipe recipe(const ZooCell& cell) const {
    std::vector<std::string> overrides{
        text("model.width=", cell.width), text("optim.lr=", cell.rate),
        text("seed=", cell.seed),         "run=" + options.folder + "/runs/" + cell.name(),
        "log.tensorboard=false",          "checkpoint.keep=1"};
    for (const ZooMechanism& m : zoo_mechanisms())
      if (m.name == cell.mechanism) overrides.insert(overrides.end(), m.overrides.begin(), m.overrides.end());
    overrides.insert(overrides.end(), options.overrides.begin(), options.overrides.end());
    return load_recipe(recipes.at(cell.task), overrides);
  }

  ZooResult run(const ZooCell& cell, const Recipe& recipe, const std::string& hash) const;
};

void score(ZooResult& result, const std::string& run) {
  const OpenModel model = open_model(run);
  print_warnings(model.warnings);
  result.parameters = model.store->numel();
  const std::vector<EvalRow> rows = eval(model, eval_texts(model.recipe));
  const std::string& first = rows.at(0).keys.at(0).second;
  result.metric = first == kTextTask ? "bits_per_byte" : find_task(first).metric;
  double cells = 0;
  result.value = result.chance = 0;
  for (const EvalRow& row : rows) {
    if (row.metric != result.metric) continue;
    ++cells;
    result.value += row.value;
    result.chance += row.chance;
    result.n += row.n;
  }
  result.value /= cells;
  result.chance /= cells;
}

Error stopped_at(const ZooCell& cell) {
  return Error(Exit::stopped, "stopped by a signal", cell.name(), "call it again: it continues from there");
}

ZooResult Zoo::run(const ZooCell& cell, const Recipe& recipe, const std::string& hash) const {
  const auto start = std::chrono::steady_clock::now();
  const std::string saved = recipe.run + "/recipe.yaml";
  // A run of other settings in this place, or one whose score was lost after its checkpoints were removed.
  if (!exists(recipe.run + "/latest") || !exists(saved) ||
      read_text_file(saved, 1 << 20) != resolved_recipe(recipe))
    remove_tree(recipe.run);
  ZooResult r;
  r.cell = cell;
  try {
    const TrainSummary summary =
        train(recipe, {.resume_auto = true, .command_line = {"weft", "eval", "zoo"}, .quiet = true}, nullptr);
    if (summary.exit == Exit::stopped) throw stopped_at(cell);
    r.loss = summary.loss;
    score(r, recipe.run);
  } catch (const Error& e) {
    if (e.code != Exit::numerics) throw;
    r.diverged = true;
    const bool text = recipe.data.task.empty();
    r.metric = text ? "bits_per_byte" : find_task(TaskText::parse(recipe.data.task[0]).id).metric;
    r.value = text ? kWorstBits : 0;
    r.chance = NAN;
  }
  r.grad_peak = r.diverged ? kWorstPeak : grad_peak(recipe.run + "/metrics.jsonl", recipe.optim.warmup);
  r.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  r.recipe_hash = hash;
  r.commit = build_commit();
  r.date = today();
  return r;
}

}  // namespace

std::string ZooCell::name() const { return text(task, "-", mechanism, "-w", width, "-lr", rate, "-s", seed); }

std::vector<ZooResult> run_zoo(const ZooOptions& given, const std::string& root,
                               const std::function<void(const std::string&)>& say) {
  // A run takes a signal as `weft train` does; one that comes while a result is made, after that result.
  const StopRequest stop(false);
  const Zoo zoo(given, root);
  const std::vector<ZooCell> cells = zoo.cells();
  make_folder(zoo.options.folder + "/cells");
  std::vector<ZooResult> results;
  for (size_t i = 0; i < cells.size(); ++i) {
    const std::string file = zoo.file(cells[i]);
    const Recipe recipe = zoo.recipe(cells[i]);
    const std::string whole = resolved_recipe(recipe), hash = hash128(whole.data(), whole.size());
    if (exists(file)) {
      ZooResult there = read_result(file);
      if (there.recipe_hash == hash) {
        there.state_bytes = state_of(recipe);
        results.push_back(std::move(there));
        continue;
      }
    }
    if (zoo.options.table_only) continue;
    if (stop.requested()) throw stopped_at(cells[i]);
    ZooResult r = zoo.run(cells[i], recipe, hash);
    r.state_bytes = state_of(recipe);
    write_file_atomically(file, to_json(r).dump() + "\n");
    remove_tree(recipe.run + "/checkpoints");
    say(text("[", i + 1, "/", cells.size(), "] ", cells[i].name(), ": ", r.metric, " ", r.value,
             r.diverged ? ", diverged" : "", ", ", static_cast<int64_t>(std::lround(r.seconds)), " s"));
    results.push_back(std::move(r));
  }
  return results;
}

}  // namespace weft
