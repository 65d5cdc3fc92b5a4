// `weft launch`: a command on several ranks.

#include "tools/launch.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <sstream>

#include "autograd/field_value.h"
#include "autograd/nearest_name.h"
#include "tools/commands.h"
#include "tools/flags.h"
#include "tools/recipe_path.h"
#include "training/log/failure.h"
#include "training/recipe/load.h"

namespace weft {
namespace {

// The value of `--NAME value`, `--NAME=value` or, as overrides of a recipe are written, `NAME=value`; the
// last one counts.
std::string value_of(const std::string& name, const Words& words) {
  std::string value;
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--" + name && i + 1 < words.size()) value = words[i + 1];
    for (const std::string& start : {"--" + name + "=", name + "="})
      if (words[i].starts_with(start)) value = words[i].substr(start.size());
  }
  return value;
}

// Of `weft train`; empty if it names none.
std::string recipe_in(const Words& words) {
  bool json = false;
  Flags flags("train", "", "");
  flags.add("--json-summary", json, "");  // the one that no value follows
  Words own(words.begin() + 1, words.end());
  flags.take_overrides(own);
  const auto recipe =
      std::find_if(own.begin(), own.end(), [](const std::string& word) { return !word.starts_with("-"); });
  return recipe == own.end() ? "" : *recipe;
}

// Where ranks of other machines leave their exit codes. What is wrong with the recipe is for the ranks to
// say.
std::string run_folder(const Words& words) {
  if (words[0] != "train") return {};
  const std::string resumed = value_of("resume", words), run = value_of("run", words);
  if (!run.empty()) return run;
  if (!resumed.empty() && resumed != "auto") return resumed;
  try {
    const std::string recipe = recipe_in(words);
    return recipe.empty() ? "" : load_recipe(recipe_path(recipe)).run;
  } catch (const Error&) {
    return {};
  }
}

// stdout of the ranks, held back until they have ended.
class HeldOutput {
 public:
  HeldOutput() : file_(std::tmpfile(), std::fclose), stdout_(dup(STDOUT_FILENO)) {
    if (!file_ || stdout_ < 0 || dup2(fileno(file_.get()), STDOUT_FILENO) < 0)
      throw Error(Exit::cannot_create, "cannot buffer the output of the ranks", "TMPDIR");
  }
  ~HeldOutput() { give_back(); }
  HeldOutput(const HeldOutput&) = delete;
  HeldOutput& operator=(const HeldOutput&) = delete;

  std::string text() {
    give_back();
    std::rewind(file_.get());
    std::string text;
    char part[4096];
    while (const size_t n = std::fread(part, 1, sizeof part, file_.get())) text.append(part, n);
    return text;
  }

 private:
  void give_back() {
    if (stdout_ < 0) return;
    dup2(stdout_, STDOUT_FILENO);
    close(stdout_);
    stdout_ = -1;
  }

  std::unique_ptr<FILE, int (*)(FILE*)> file_;
  int stdout_;
};

// With --json one line has to come, even where rank 0 was killed before it could print it.
int launch_for_json(const LaunchOptions& options, const Words& words) {
  HeldOutput held;
  const LaunchResult result = launch(options, words);
  const std::string said = held.text();
  if (!said.empty()) result.code == Exit::ok ? print(said) : print_failure(said);
  if (!result.what.empty()) print_error(Error(result.code, result.what));
  if (said.empty() && result.code != Exit::ok) {
    std::string what = result.what.empty() ? "a rank failed, as stderr says" : result.what;
    if (!result.cause.empty()) what = result.cause;
    print_failure(failure_json(words[0] + "/1", Error(result.code, what), result.rank) + "\n");
  }
  return static_cast<int>(result.code);
}

}  // namespace

int run_launch(const Words& words) {
  Flags flags(
      "launch", "COMMAND [ARGUMENT...]",
      "Runs a weft command on N ranks, with mpirun or srun, and returns the exit code of the first cause.");
  LaunchOptions options;
  int64_t ranks = 0;
  std::string extra;
  flags.add("-n", ranks, "N", "number of ranks", {.required = true, .min = 1, .max = 1 << 20});
  flags.add("--with", options.with, "LAUNCHER", "auto (default), mpirun or srun");
  flags.add("--pass", extra, "FLAGS", "further flags for mpirun or srun, quoted: \"--hostfile hosts\"",
            {.may_be_empty = true});
  flags.end_at_first_argument();
  if (!flags.parse(words)) return 0;
  const Words& launched = flags.arguments();
  const Command* command = find_command(launched[0]);
  if (!command || !command->ranks) {
    Words names;
    for (const Command& c : commands())
      if (c.ranks) names.push_back(c.name);
    throw Error(Exit::usage, shown(launched[0]) + (command ? " runs on one rank" : " is not a command"),
                "weft launch",
                command ? "start it without launch" : suggest_name(launched[0], names, "commands"));
  }
  options.ranks = static_cast<int>(ranks);
  std::istringstream split(extra);
  for (std::string flag; split >> flag;) options.extra.push_back(flag);
  options.run_folder = run_folder(launched);
  if (wants_json(launched)) return launch_for_json(options, launched);
  const LaunchResult result = launch(options, launched);
  if (!result.what.empty()) throw Error(result.code, result.what);
  return static_cast<int>(result.code);
}

}  // namespace weft
