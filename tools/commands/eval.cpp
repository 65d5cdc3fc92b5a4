// `weft eval`: a run on tasks or text; `weft eval zoo`: every mechanism on every task.

#include "training/eval.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <sstream>

#include "tools/commands.h"
#include "tools/commands/json_line.h"
#include "tools/device_flag.h"
#include "tools/flags.h"
#include "tools/recipe_path.h"
#include "tools/zoo.h"
#include "training/checkpoint/files.h"
#include "training/log/stop_request.h"
#include "training/recipe/load.h"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;

Words split(const std::string& text, char at) {
  Words parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, at);)
    if (part.find_first_not_of(' ') != part.npos) parts.push_back(part);
  return parts;
}

// A setting as the number it is, where it is one.
Json setting(const std::string& text) {
  const Json number = Json::parse(text, nullptr, false);
  return number.is_number() || number.is_boolean() ? number : Json(text);
}

Json to_json(const EvalRow& row) {
  Json j = Json::object();
  for (const auto& [key, value] : row.keys) j[key] = setting(value);
  j["seed"] = row.seed;
  j["metric"] = row.metric;
  j["value"] = number_or_null(row.value);
  j["n"] = row.n;
  j["chance"] = number_or_null(row.chance);
  return j;
}

void print_rows(const std::vector<EvalRow>& rows) {
  for (const EvalRow& row : rows) {
    std::string keys;
    for (const auto& [key, value] : row.keys) keys += key == "task" ? value : text(" ", key, "=", value);
    char line[200];
    std::snprintf(line, sizeof line, "%-48s %-13s %8.4f  n %lld", keys.c_str(), row.metric.c_str(), row.value,
                  static_cast<long long>(row.n));
    print(line);
    if (std::isfinite(row.chance)) {
      std::snprintf(line, sizeof line, "  chance %.4f", row.chance);
      print(line);
    }
    print("\n");
  }
}

int eval_run(const Words& words) {
  EvalOptions options;
  std::string task, path, device;
  bool json = false;
  Flags flags(
      "eval", "RUN",
      "Scores a trained run on held-out examples of tasks, or on text, and prints one row for each cell of "
      "the grid.\n`weft eval zoo --help`: all mechanisms on all tasks.");
  flags.add(
      "--task", task, "TEXT",
      "a grid such as \"mqar length=64,256 pairs=4,8\"; several are separated by semicolons; lm is text. "
      "Default: eval.grid, else what the run was trained on");
  flags.add("--text", path, "FILE", "text for lm: file, folder or glob; default: the run's held-out text");
  flags.add("--examples", options.examples, "N", "examples for each cell; default 500",
            {.min = 1, .max = int64_t{1} << 32});
  flags.add("--seed", options.seed, "S", "seed of the examples; default 1", {.min = 0, .max = UINT32_MAX});
  flags.add("--device", device, "cpu|cuda", kDeviceHelp);
  flags.add("--json", json, "one line of JSON, eval/1");
  if (!flags.parse(words)) return 0;
  compute_on(device);
  std::optional<StopRequest> stop(std::in_place, false);
  options.stop = [&] { return stop->requested(); };
  const OpenModel model = open_model(flags.arguments()[0]);
  print_warnings(model.warnings);
  const Words texts = task.empty() ? eval_texts(model.recipe) : split(task, ';');
  if (texts.empty()) throw Error(Exit::usage, "--task names no task", "--task", "`weft ls` lists them");
  const auto reads_text = [](const std::string& t) { return TaskText::parse(t).id == "lm"; };
  if (!path.empty() && std::none_of(texts.begin(), texts.end(), reads_text))
    throw Error(Exit::usage, "no task here reads text", "--text", "add --task lm");
  const std::vector<EvalRow> rows = eval(model, texts, options, path.empty() ? Words{} : Words{path});
  stop.reset();  // a reader that leaves ends what prints
  if (!json) {
    print_rows(rows);
    return 0;
  }
  std::string names;
  Json list = Json::array();
  for (const EvalRow& row : rows) list.push_back(to_json(row));
  for (const std::string& t : texts) {
    const std::string id = TaskText::parse(t).id;
    if ((names + ",").find(id + ",") == names.npos) names += (names.empty() ? "" : ",") + id;
  }
  print_line({{"weft", "eval/1"},
              {"exit", 0},
              {"run", flags.arguments()[0]},
              {"step", model.step},
              {"task", names},
              {"rows", list}});
  return 0;
}

std::vector<int64_t> whole_numbers(const std::string& flag, const std::string& text) {
  std::vector<int64_t> all;
  for (const std::string& part : split(text, ',')) {
    const size_t dots = part.find("..");
    const int64_t from = flag_number(flag, part.substr(0, dots), 0, UINT32_MAX);
    const int64_t to = dots == part.npos ? from : flag_number(flag, part.substr(dots + 2), from, from + 1000);
    for (int64_t n = from; n <= to; ++n) all.push_back(n);
  }
  if (all.empty()) refuse_flag(flag, text, "numbers such as 1..3 or 1,2");
  return all;
}

std::vector<double> numbers(const std::string& flag, const std::string& text) {
  std::vector<double> all;
  for (const std::string& part : split(text, ',')) {
    const Json number = Json::parse(part, nullptr, false);
    if (!number.is_number() || number.get<double>() <= 0)
      refuse_flag(flag, text, "numbers such as 1e-3,3e-3");
    all.push_back(number.get<double>());
  }
  return all;
}

Json to_json(const ZooResult& r) {
  return {{"task", r.cell.task},
          {"mechanism", r.cell.mechanism},
          {"width", r.cell.width},
          {"rate", r.cell.rate},
          {"seed", r.cell.seed},
          {"metric", r.metric},
          {"value", number_or_null(r.value)},
          {"n", r.n},
          {"chance", number_or_null(r.chance)},
          {"diverged", r.diverged},
          {"grad_peak", number_or_null(r.grad_peak)},
          {"state_bytes", r.state_bytes < 0 ? Json() : Json(r.state_bytes)}};
}

int eval_zoo(const Words& words) {
  ZooOptions options;
  std::string mechanisms, tasks, seeds = "1..3", rates, widths;
  bool json = false;
  Flags flags(
      "eval zoo", "[KEY=VALUE...]",
      "Trains every mechanism on every task, with several seeds, and judges the papers' claims by the "
      "results.\nCalled again, the command continues where it was. KEY=VALUE overrides that key in all "
      "recipes.");
  flags.add("--mechanisms", mechanisms, "A,B", "mechanisms; default: all");
  flags.add("--tasks", tasks, "A,B", "tasks; default: all recipes of the size");
  flags.add("--seeds", seeds, "1..3", "seeds; a verdict needs three");
  flags.add("--rates", rates, "A,B", "learning rates (optim.lr); default: those of the size");
  flags.add("--widths", widths, "A,B", "values of model.width; default: those of the size");
  flags.add("--size", options.size, "cpu|gpu",
            "cpu: minutes for each mechanism, shows directions only; gpu: the real grid");
  flags.add("--out", options.folder, "FOLDER", "folder of the results; default runs/zoo-SIZE");
  flags.add("--table", options.table_only, "run nothing, only print the table of the results so far");
  flags.add("--json", json, "one line of JSON, eval/1");
  if (!flags.parse(words)) return 0;
  options.mechanisms = split(mechanisms, ',');
  options.tasks = split(tasks, ',');
  options.seeds = whole_numbers("--seeds", seeds);
  options.rates = numbers("--rates", rates);
  if (!widths.empty()) options.widths = whole_numbers("--widths", widths);
  options.overrides = split_overrides(flags.arguments());
  if (options.folder.empty()) options.folder = "runs/zoo-" + options.size;
  if (options.table_only && !exists(options.folder))
    throw Error(Exit::no_checkpoint, "there are no results", options.folder,
                "name the --out of a zoo that ran");
  const std::vector<ZooResult> results = run_zoo(
      options, recipe_root(), [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); });
  const std::vector<ZooVerdict> verdicts = judge(results, zoo_claims());
  const std::string report = zoo_report(results, verdicts, options.size);
  write_file_atomically(options.folder + "/table.md", report);
  if (!json) {
    print(report);
    return 0;
  }
  Json rows = Json::array(), claims = Json::array();
  for (const ZooResult& r : results) rows.push_back(to_json(r));
  for (const ZooVerdict& v : verdicts)
    claims.push_back({{"says", v.claim.says},
                      {"paper", v.claim.paper},
                      {"task", v.claim.task},
                      {"width", v.width},
                      {"verdict", v.verdict},
                      {"why", v.why}});
  print_line({{"weft", "eval/1"}, {"exit", 0}, {"task", "zoo"}, {"rows", rows}, {"claims", claims}});
  return 0;
}

}  // namespace

int run_eval(const Words& words) {
  if (!words.empty() && words[0] == "zoo") return eval_zoo({words.begin() + 1, words.end()});
  return eval_run(words);
}

}  // namespace weft
