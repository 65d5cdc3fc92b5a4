#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>

#include "autograd/fault.h"
#include "distributed/environment.h"
#include "distributed/exit_code.h"
#include "tools/command.h"
#include "tools/commands.h"
#include "tools/device_flag.h"
#include "tools/flags.h"
#include "tools/rank_failure.h"
#include "tools/recipe_path.h"
#include "training/log/printable.h"
#include "training/log/stop_request.h"
#include "training/recipe/load.h"
#include "training/train.h"

namespace weft {
namespace {

struct TrainFlags {
  std::string resume, device;
  bool json = false;

  Flags flags() {
    Flags f(
        "train", "[RECIPE] [KEY=VALUE...]",
        "Trains the model that a recipe describes. Overrides are written optim.lr=3e-4 or --optim.lr 3e-4.");
    f.add("--device", device, "cpu|cuda", kDeviceHelp);
    f.add("--resume", resume, "RUN|auto",
          "continue the run in that folder from its last good checkpoint; auto: the recipe's run if it is "
          "there, else starts it");
    f.add("--json-summary", json, "one line of JSON, train/1, at the end, also on failure");
    return f;
  }
};

// A limit of the ranks' watch from the environment; seconds, 0: for ever.
std::chrono::seconds limit_in(const char* name, std::chrono::seconds absent) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == 0) return absent;
  int seconds = 0;
  const char* end = value + std::strlen(value);
  const auto [stop, error] = std::from_chars(value, end, seconds);
  if (stop != end || error != std::errc{} || seconds < 0)
    throw Error(Exit::usage, text(name, " is ", value, ", not a number of seconds"), name,
                "give a number of seconds, 0 for no limit, or leave it out");
  return std::chrono::seconds(seconds);
}

WorldOptions watched() {
  WorldOptions options;
  options.hang_limit = limit_in("WEFT_HANG_LIMIT", std::chrono::minutes(30));
  options.stop_limit = limit_in("WEFT_STOP_LIMIT", options.stop_limit);
  return options;
}

struct Request {
  Recipe recipe;
  TrainOptions options;
};

Request parse(const Words& words) {
  TrainFlags said;
  Flags flags = said.flags();
  Words own = words;
  const Words rest = flags.take_overrides(own);
  flags.parse(own);
  const std::string& resume = said.resume;
  std::string recipe = flags.argument(0);
  Request r;
  compute_on(said.device);
  r.options.resume_auto = resume == "auto";
  r.options.resume = !resume.empty() && !r.options.resume_auto;
  r.options.command_line = {"weft", "train"};
  r.options.command_line.insert(r.options.command_line.end(), words.begin(), words.end());
  if (r.options.resume && recipe.empty()) {
    recipe = resume + "/recipe.yaml";
    if (!std::filesystem::exists(recipe) && std::filesystem::exists(resume + "/checkpoints"))
      throw Error(Exit::no_checkpoint, "the run has no recipe.yaml any more", resume,
                  "name its recipe: weft train RECIPE --resume " + resume);
    if (!std::filesystem::exists(recipe))
      throw Error(Exit::no_checkpoint, "no run to continue", resume, "start it with weft train RECIPE");
  }
  if (recipe.empty())
    throw Error(Exit::usage, "no recipe named", {}, "try weft train recipes/quickstart.yaml, or weft ls");
  const Words overrides = split_overrides(rest);
  r.recipe = load_recipe(recipe_path(recipe), overrides);
  if (r.options.resume) {
    for (const std::string& o : overrides)
      if (o.starts_with("run="))
        throw Error(Exit::usage, "a resumed run stays in its folder", "override " + o,
                    "leave it out, or start a new run with init=" + resume);
    r.recipe.run = resume;
  }
  while (r.recipe.run.size() > 1 && r.recipe.run.back() == '/') r.recipe.run.pop_back();
  return r;
}

void print_summary(const TrainSummary& s) {
  std::printf("%s: %lld of %lld steps", s.status.c_str(), static_cast<long long>(s.step),
              static_cast<long long>(s.steps));
  if (std::isfinite(s.loss)) std::printf(", loss %.4f", s.loss);
  if (std::isfinite(s.val_bpb)) std::printf(", validation %.3f bits a byte", s.val_bpb);
  if (std::isfinite(s.val_accuracy)) std::printf(", validation accuracy %.4f", s.val_accuracy);
  if (std::isfinite(s.val_exact)) std::printf(", whole answers %.4f", s.val_exact);
  if (std::isfinite(s.baseline_bpb)) std::printf(" (5-gram model of the same text: %.3f)", s.baseline_bpb);
  std::printf(", %.0f s\n", s.seconds);
  if (s.exit == Exit::stopped) std::printf("continue with: weft train --resume %s\n", s.run.c_str());
  if (!s.sample.empty()) std::printf("\n%s\n", for_reader(s.sample).c_str());
}

}  // namespace

int run_train(const Words& words) {
  const auto has = [&](const char* flag) {
    return std::find(words.begin(), words.end(), flag) != words.end();
  };
  if (has("--help") || has("-h")) {
    print(TrainFlags().flags().help());
    return 0;
  }
  const bool json = has("--json-summary");
  std::signal(SIGPIPE, SIG_IGN);  // a finished run is one, whoever still reads what it says
  std::unique_ptr<Communicator> world;
  const Launched launched = detect_launch();
  // Ranks hear a signal while they still find each other, and none when all is said: a launcher ends the
  // others when the first has left.
  std::optional<StopRequest> stop(std::in_place, launched.rank == 0);
  std::string run;
  int64_t step = 0;
  try {
    fault::configure_from_environment();
    if (launched.size > 1) {
      world = world_communicator(launched, watched());
      leave_word(*world, "", "train/1", json);  // of a recipe that cannot be read there is no folder
    }
    Request request = parse(words);
    run = request.recipe.run;
    request.options.step = &step;
    if (world) leave_word(*world, run, "train/1", json);
    const TrainSummary summary = train(request.recipe, request.options, world.get());
    if (launched.rank == 0) {
      if (json)
        print(to_json(summary) + "\n");
      else
        print_summary(summary);
      std::fflush(stdout);
    }
    stop.reset();
    world.reset();
    if (launched.size > 1)
      leave_exit_code(run, launched.rank, summary.exit, launched.rank,
                      summary.exit == Exit::ok ? "" : "stopped by a signal; continue with --resume");
    return static_cast<int>(summary.exit);
  } catch (const std::exception& e) {
    stop.reset();
    return end_rank(world.get(), e, json ? "train/1" : "", step > 0 ? std::optional(step) : std::nullopt);
  }
}

}  // namespace weft
