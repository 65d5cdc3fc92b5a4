// `weft sweep`: every combination of some values, one run each.

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>

#include "tools/child_process.h"
#include "tools/commands.h"
#include "tools/commands/json_line.h"
#include "tools/device_flag.h"
#include "tools/flags.h"
#include "tools/recipe_path.h"
#include "tools/sweep_runs.h"
#include "tools/text_table.h"
#include "training/data/corpus.h"
#include "training/log/console_text.h"
#include "training/log/failure.h"
#include "training/recipe/load.h"
#include "training/sweep/match.h"
#include "training/sweep/product.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct SweepRequest {
  std::string recipe;  // its path
  std::vector<SweepAxis> axes;
  std::string folder;  // of all runs
  MatchBy match = MatchBy::none;
  std::string match_key;
  SweepProgram program;
  bool print = false, json = false;
};

std::optional<SweepRequest> parse_sweep(const Words& words) {
  SweepRequest request;
  std::string match;
  int64_t ranks = 0;
  Flags flags(
      "sweep", "RECIPE [KEY=VALUES...]",
      "Trains every combination of values, one run each: KEY=VALUE,VALUE or KEY=1..3, as in\n"
      "  weft sweep quickstart model.layers=gla*4,[lightning*3,softmax] seed=1..3 optim.lr=1e-3,3e-3\n"
      "A value means what it means to weft train: gla is one layer, gla*4 are four. All recipes are\n"
      "checked before the first run starts. Called again, the command continues: it skips finished runs\n"
      "and resumes others. Runs are in runs/NAME-sweep, or in the folder of run=FOLDER.");
  flags.add(
      "--match", match, "SIZE",
      "parameters, flops (for a token) or state (bytes to decode): size each model to the first, within 2 %");
  flags.add("--match-by", request.match_key, "KEY",
            "key that --match changes; default: model.ffn, then model.width; for state model.head_size, then "
            "model.heads");
  flags.add("--print", request.print, "only print the commands of runs that are not finished, one a line");
  flags.add("-n", ranks, "N", "ranks of each run, started by weft launch", {.min = 1, .max = 1 << 20});
  flags.add("--device", request.program.device, "cpu|cuda", kDeviceHelp);
  flags.add("--json", request.json, "one line of JSON, sweep/1");
  Words own = words;
  const Words overrides = flags.take_overrides(own);
  if (!flags.parse(own)) return {};
  if (request.print && request.json)
    throw Error(Exit::usage, "--print and --json exclude each other", "--print", "leave one out");
  request.program.ranks = static_cast<int>(ranks);
  request.program.path = fs::read_symlink("/proc/self/exe").string();
  if (!request.program.device.empty())
    flag_choice<bool>("--device", request.program.device, {{"cpu", true}, {"cuda", true}});
  if (!match.empty())
    request.match = flag_choice<MatchBy>(
        "--match", match,
        {{"parameters", MatchBy::parameters}, {"flops", MatchBy::flops}, {"state", MatchBy::state}});
  else if (!request.match_key.empty())
    refuse_flag("--match-by", request.match_key, "say what to match with --match parameters, flops or state");
  request.recipe = recipe_path(flags.argument(0));
  request.axes = sweep_axes(split_overrides(overrides));
  const auto run = std::find_if(request.axes.begin(), request.axes.end(),
                                [](const SweepAxis& a) { return a.key == "run"; });
  if (run != request.axes.end()) {
    if (run->values.size() > 1)
      throw Error(Exit::usage, "run has several values", "run",
                  "give one folder; each run gets its own in it");
    request.folder = run->values[0];
    request.axes.erase(run);
  }
  if (request.folder.empty()) request.folder = load_recipe(request.recipe).run + "-sweep";
  return request;
}

// One planner for each text of the sweep: whichever seed comes first, its documents serve for all.
class Planners {
 public:
  const Planner& of(const Recipe& recipe) {
    Recipe text_alone = recipe;
    text_alone.model = {};
    text_alone.model.vocab = recipe.model.vocab;
    const std::string key = plan_key(text_alone);
    const auto found = made_.find(key);
    return found != made_.end() ? found->second : made_.emplace(key, Planner(recipe)).first->second;
  }

 private:
  std::map<std::string, Planner> made_;
};

void check_text_is_there(const Recipe& recipe) {
  std::vector<std::string> paths = recipe.data.val.paths;
  for (const Recipe::Source& source : recipe.data.train.list) paths.push_back(source.path);
  if (paths.empty() && recipe.data.task.empty())
    throw Error(Exit::recipe, "data.train names no text", recipe.where("data.train"),
                "set data.train or data.task");
  expand_paths(paths);
}

class Sweep {
 public:
  explicit Sweep(const SweepRequest& request) : request_(request) {}

  // Every recipe loaded, sized and planned: a mistake in the last one is found before the first one runs.
  std::vector<SweepRun> runs() {
    std::vector<SweepRun> runs;
    const std::vector<SweepPoint> points = sweep_points(request_.axes);
    for (const SweepPoint& point : points) {
      SweepRun run{point.name, request_.recipe, point.overrides, {}};
      run.overrides.push_back("run=" + (fs::path(request_.folder) / point.name).string());
      try {
        prepare(run);
      } catch (const Error& error) {
        if (points.size() == 1) throw;
        throw Error(error.code, text(run.name, ": ", error.what()), error.where, error.advice);
      }
      runs.push_back(std::move(run));
    }
    return runs;
  }

 private:
  void prepare(SweepRun& run) {
    run.recipe = load_recipe(run.recipe_file, run.overrides);
    check_text_is_there(run.recipe);
    const std::string model = plan_key(run.recipe);
    if (const auto known = sized_.find(model); known != sized_.end()) {
      add(run, known->second);
    } else {
      const Planner& planner = planners_.of(run.recipe);
      add(run, sized_[model] = matched(run, planner));
      planner.plan(run.recipe, std::max(1, request_.program.ranks));
    }
    is_finished(run);  // refuses a folder of another recipe
  }

  void add(SweepRun& run, const std::vector<std::string>& more) const {
    if (more.empty()) return;
    run.overrides.insert(run.overrides.end() - 1, more.begin(), more.end());
    run.recipe = load_recipe(run.recipe_file, run.overrides);
  }

  std::vector<std::string> matched(const SweepRun& run, const Planner& planner) {
    if (request_.match == MatchBy::none) return {};
    if (!target_) {
      target_ = model_size(run.recipe, request_.match, planner);
      say(run, "the size to match", {{}, *target_});
      return {};
    }
    const auto with = [&](const std::vector<std::string>& more) {
      std::vector<std::string> all = run.overrides;
      all.insert(all.end(), more.begin(), more.end());
      return load_recipe(run.recipe_file, all);
    };
    const Match match = match_size(with, request_.match, request_.match_key, *target_, planner);
    say(run, match.overrides.empty() ? "fits as it is" : "", match);
    return match.overrides;
  }

  void say(const SweepRun& run, std::string how, const Match& match) const {
    for (const std::string& override_ : match.overrides) how += (how.empty() ? "" : " ") + override_;
    const char* unit = request_.match == MatchBy::parameters ? "parameters"
                       : request_.match == MatchBy::flops    ? "FLOPs a token"
                                                             : "bytes of state";
    std::fprintf(stderr, "weft: %s: %s: %s %s, %+.1f %% of the first\n", run.name.c_str(), how.c_str(),
                 grouped(match.size).c_str(), unit, 100 * (match.size / *target_ - 1));
  }

  const SweepRequest& request_;
  Planners planners_;
  std::map<std::string, std::vector<std::string>> sized_;  // what matching adds to a model
  std::optional<double> target_;
};

void print_commands(const std::vector<SweepRun>& runs, const SweepProgram& program) {
  // Paths in recipes are relative to the working directory.
  const std::string here = "cd " + shell_word(fs::current_path().string()) + " && ";
  size_t left_out = 0;
  for (const SweepRun& run : runs) {
    if (is_finished(run)) {
      ++left_out;
      continue;
    }
    std::string line;
    for (const std::string& word : command_of(run, program))
      line += (line.empty() ? "" : " ") + shell_word(word);
    print(here + line + "\n");
  }
  if (left_out > 0)
    std::fprintf(stderr, "weft: %zu of %zu runs are finished and left out\n", left_out, runs.size());
}

Exit code_of(const std::vector<SweepResult>& results) {
  for (const SweepResult& result : results)
    if (result.status == "failed") return static_cast<Exit>(result.code);
  for (const SweepResult& result : results)
    if (result.status == "stopped" || result.status == "not started") return Exit::stopped;
  return Exit::ok;
}

// wrong: why the sweep is not finished, if it is not
void print_results(const SweepRequest& request, const std::vector<SweepRun>& runs,
                   const std::vector<SweepResult>& results, const std::optional<Error>& wrong) {
  const auto fixed = [](double x) {
    char out[32];
    std::snprintf(out, sizeof out, "%.4f", x);
    return std::isfinite(x) ? std::string(out) : "-";
  };
  Json rows = Json::array();
  std::vector<Words> lines{{"RUN", "STATUS", "STEP", "LOSS", "VALIDATION", "BITS A BYTE"}};
  std::string failures;
  for (size_t i = 0; i < runs.size(); ++i) {
    const SweepResult& r = results[i];
    rows.push_back({{"run", runs[i].recipe.run},
                    {"status", r.status},
                    {"exit", r.code},
                    {"step", r.step},
                    {"loss", number_or_null(r.loss)},
                    {"val_loss", number_or_null(r.val_loss)},
                    {"val_bpb", number_or_null(r.val_bpb)},
                    {"seconds", number_or_null(r.seconds)},
                    {"error", r.failure.empty() ? Json() : Json(r.failure)}});
    lines.push_back(
        {runs[i].name, r.status, std::to_string(r.step), fixed(r.loss), fixed(r.val_loss), fixed(r.val_bpb)});
    if (!r.failure.empty()) failures += "  " + runs[i].name + ": " + r.failure + "\n";
  }
  if (request.json) {
    Json line =
        wrong ? Json::parse(failure_json("sweep/1", *wrong, 0)) : Json{{"weft", "sweep/1"}, {"exit", 0}};
    line["folder"] = request.folder;
    line["runs"] = rows;
    if (wrong)
      print_failure(line.dump() + "\n");
    else
      print_line(line);
    return;
  }
  const std::string table = text_table(lines) + (failures.empty() ? "" : "\n  FAILED\n" + failures) +
                            "\n  compare them: weft report " + shell_word(request.folder) + "\n";
  if (wrong)  // what is said of it keeps its code where nobody reads the table
    print_failure(table);
  else
    print(table);
}

}  // namespace

int run_sweep(const Words& words) {
  const std::optional<SweepRequest> request = parse_sweep(words);
  if (!request) return 0;
  const std::vector<SweepRun> runs = Sweep(*request).runs();
  if (request->print) {
    print_commands(runs, request->program);
    return 0;
  }
  const std::vector<SweepResult> results = train_all(runs, request->program);
  const Exit code = code_of(results);
  const auto failed = std::count_if(results.begin(), results.end(),
                                    [](const SweepResult& r) { return r.status == "failed"; });
  std::optional<Error> wrong;
  if (failed > 0)
    wrong.emplace(code, text(failed, " of ", runs.size(), " runs failed"), request->folder,
                  "the same command tries them again");
  else if (code == Exit::stopped)
    wrong.emplace(code, "stopped by a signal", request->folder, "the same command continues");
  print_results(*request, runs, results, wrong);
  if (wrong) print_error(*wrong);
  return static_cast<int>(code);
}

}  // namespace weft
