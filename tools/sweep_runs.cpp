#include "tools/sweep_runs.h"

#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "tools/child_process.h"
#include "training/checkpoint/files.h"
#include "training/checkpoint/folder.h"
#include "training/checkpoint/lock.h"
#include "training/log/clock.h"
#include "training/log/console_text.h"
#include "training/log/failure.h"
#include "training/log/metrics_file.h"
#include "training/log/stop_request.h"
#include "training/mechanism_settings.h"
#include "training/recipe/diff.h"
#include "training/recipe/load.h"
#include "training/report/compare.h"

namespace weft {
namespace {

using Json = nlohmann::json;

constexpr double kBetweenLines = 60;  // seconds, off a terminal

std::string last_line_of(const std::string& path, const std::string& start) {
  std::ifstream file(path, std::ios::binary);
  std::string found;
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(start)) found = line;
  return found;
}

double number(const Json& line, const char* key) {
  const auto at = line.find(key);
  return at != line.end() && at->is_number() ? at->get<double>() : NAN;
}

std::string shown_loss(const char* what, double loss) {
  char out[64];
  std::snprintf(out, sizeof out, "%s %.4f", what, loss);
  return std::isfinite(loss) ? out : std::string(what) + " -";
}

// Where the sweep stands: a line that is redrawn on a terminal, else a line a minute.
class Display {
 public:
  Display(size_t count) : count_(count), terminal_(isatty(STDERR_FILENO) == 1) {}

  void begin(size_t index, const SweepRun& run) {
    head_ = text("run ", index + 1, " of ", count_, "  ", run.name);
    metrics_ = run.recipe.run + "/metrics.jsonl";
    steps_ = run.recipe.steps;
    started_ = said_ = monotonic_seconds();
    const Json line = last_step();  // of a run that goes on
    first_step_ = line.is_object() ? static_cast<int64_t>(number(line, "step")) : 0;
  }

  // left: runs after this one; usual: seconds that one took, NaN if unknown
  void tick(size_t left, double usual) {
    const double now = monotonic_seconds();
    if (!terminal_ && now - said_ < kBetweenLines) return;
    said_ = now;
    const Json line = last_step();
    if (!line.is_object()) return;
    const auto step = static_cast<int64_t>(number(line, "step"));
    const double pace = step > first_step_ ? (now - started_) / static_cast<double>(step - first_step_) : NAN;
    const double this_run = pace * static_cast<double>(steps_ - step);
    const double one = std::isfinite(usual) ? usual : now - started_ + this_run;
    const std::string words =
        text(head_, "  step ", step, "/", steps_, "  ", shown_loss("loss", number(line, "loss")),
             "  left: ", duration_text(this_run), ", of all ",
             duration_text(this_run + one * static_cast<double>(left)));
    say(words, terminal_ ? "" : "\n");
  }

  void end(const std::string& outcome) { say(head_ + ": " + outcome, "\n"); }

 private:
  void say(std::string words, const char* after) const {
    // A line that is to be redrawn has to fit into one.
    winsize size{};
    const bool redrawn = *after == 0 && ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1;
    if (redrawn) words = words.substr(0, size.ws_col - 1);
    std::fprintf(stderr, "%s%s%s", terminal_ ? "\r\x1b[K" : "", words.c_str(), after);
    std::fflush(stderr);
  }

  // The last whole line that is a step, from the end of the file.
  Json last_step() const {
    std::ifstream file(metrics_, std::ios::binary | std::ios::ate);
    if (!file) return {};
    const std::streamoff size = file.tellg(), from = std::max<std::streamoff>(0, size - 8192);
    file.seekg(from);
    Json found;
    for (std::string text; std::getline(file, text);) {
      const Json line = Json::parse(text, nullptr, false);
      if (line.is_object() && line.contains("step") && !line.contains("event")) found = line;
    }
    return found;
  }

  size_t count_;
  bool terminal_;
  std::string head_, metrics_;
  int64_t steps_ = 0, first_step_ = 0;  // of the run; done before it was started here
  double started_ = 0, said_ = 0;
};

SweepResult result_of(const SweepRun& run, const ChildEnd& end, const std::string& out,
                      const std::string& console) {
  const int wait_status = end.wait_status;
  // Asked before it could listen, or when it had just left.
  const bool unheard = end.stop && WIFSIGNALED(wait_status) &&
                       (WTERMSIG(wait_status) == SIGUSR1 || WTERMSIG(wait_status) == SIGTERM);
  SweepResult result;
  const Json said = Json::parse(last_line_of(out, "{"), nullptr, false);
  result.code = unheard                  ? static_cast<int>(Exit::stopped)
                : WIFEXITED(wait_status) ? WEXITSTATUS(wait_status)
                                         : static_cast<int>(Exit::internal);
  result.status = result.code == 0                                 ? "done"
                  : result.code == static_cast<int>(Exit::stopped) ? "stopped"
                                                                   : "failed";
  if (said.is_object() && !said.contains("error")) {
    result.step = said.value("step", int64_t{0});
    result.loss = number(said, "loss");
    result.val_loss = number(said, "val_loss");
    result.val_bpb = number(said, "val_bpb");
    result.seconds = number(said, "seconds");
  }
  if (result.status != "failed") return result;
  const RunData data = read_run(run.recipe.run, wall_seconds());
  if (!data.points.empty()) result.step = data.points.back().step;
  // The process has said why, unless it was killed.
  result.failure = last_line_of(console, "weft: ");
  if (WIFSIGNALED(wait_status))
    result.failure =
        text("weft: ended by signal ", WTERMSIG(wait_status), " (", strsignal(WTERMSIG(wait_status)), ")");
  if (result.failure.empty()) result.failure = text("weft: ended with code ", result.code);
  return result;
}

SweepResult result_before(const SweepRun& run) {
  SweepResult result;
  result.status = "finished before";
  result.step = run.recipe.steps;
  for (const RunPoint& point : read_run(run.recipe.run, wall_seconds()).points) {
    if (std::isfinite(point.loss) && !point.refused) result.loss = point.loss;
    if (std::isfinite(point.val_loss)) result.val_loss = point.val_loss;
    if (std::isfinite(point.val_bpb)) result.val_bpb = point.val_bpb;
  }
  return result;
}

}  // namespace

std::vector<std::string> command_of(const SweepRun& run, const SweepProgram& program) {
  std::vector<std::string> words{program.path};
  if (program.ranks > 0) words.insert(words.end(), {"launch", "-n", std::to_string(program.ranks)});
  words.insert(words.end(), {"train", run.recipe_file});
  words.insert(words.end(), run.overrides.begin(), run.overrides.end());
  if (!program.device.empty()) words.insert(words.end(), {"--device", program.device});
  words.insert(words.end(), {"--resume", "auto"});
  return words;
}

bool is_finished(const SweepRun& run) {
  const std::string saved = run.recipe.run + "/recipe.yaml";
  if (!exists(saved)) return false;
  const std::vector<int64_t> steps = ckpt::list_steps(run.recipe.run);
  const bool finished = !steps.empty() && steps.back() >= run.recipe.steps &&
                        !evaluation_was_stopped(run.recipe.run + "/metrics.jsonl", steps.back());
  // A run that goes on may change what is not fixed; the result of a finished one has to be that of this
  // recipe. Settings of mechanisms that change speed alone change neither.
  const Recipe before = load_recipe(saved);
  for (const RecipeDifference& d : recipe_diff(before, run.recipe, same_function(before, run.recipe)))
    if (d.fixed || (finished && !d.speed_only && !is_housekeeping(d.key)))
      throw Error(Exit::recipe, "the run was made with another recipe: " + d.line(), run.recipe.run,
                  "set it back, or sweep in another folder with run=FOLDER");
  return finished;
}

std::vector<SweepResult> train_all(const std::vector<SweepRun>& runs, const SweepProgram& program) {
  const StopRequest stop(false);
  std::vector<SweepResult> results(runs.size(), SweepResult{.status = "not started"});
  std::vector<size_t> open;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (is_finished(runs[i]))
      results[i] = result_before(runs[i]);
    else
      open.push_back(i);
  }
  Display display(runs.size());
  double seconds = 0, done = 0;
  for (size_t k = 0; k < open.size() && !stop.requested(); ++k) {
    const SweepRun& run = runs[open[k]];
    const std::string log = run.recipe.run + "/log";
    make_folder(log);
    // Another sweep may be at work here: what it has finished by now is finished, what it trains keeps its
    // files.
    if (is_finished(run)) {
      results[open[k]] = result_before(run);
      continue;
    }
    try {
      const ckpt::RunLock nobodys(run.recipe.run);
    } catch (const Error& e) {
      results[open[k]] = {.status = "failed", .code = static_cast<int>(e.code), .failure = error_line(e)};
      display.begin(open[k], run);
      display.end(error_line(e));
      continue;
    }
    const std::string out = log + "/summary.json", console = log + "/console.txt";
    for (const std::string& old : {out, console}) std::remove(old.c_str());
    display.begin(open[k], run);
    const double start = monotonic_seconds();
    std::vector<std::string> words = command_of(run, program);
    words.emplace_back("--json-summary");
    const ChildEnd end =
        run_child({.words = words,
                   .out = out,
                   .err = console,
                   .on_stop = "\nweft: asking the run to save and leave; again to end it at once\n",
                   .tick = [&](pid_t) { display.tick(open.size() - k - 1, seconds / done); },
                   .cancelled = [&] { return stop.requested(); }});
    if (!end.started) break;
    SweepResult& result = results[open[k]];
    result = result_of(run, end, out, console);
    if (result.status == "done") seconds += monotonic_seconds() - start, ++done;
    const auto left = static_cast<double>(open.size() - k - 1);
    display.end(result.status == "failed"
                    ? result.failure
                    : text(result.status, ", ", shown_loss("loss", result.loss), ", ",
                           shown_loss("validation", result.val_loss), ", ",
                           duration_text(monotonic_seconds() - start),
                           left > 0 && done > 0 ? "; left: " + duration_text(seconds / done * left) : ""));
    if (end.stop) break;
  }
  return results;
}

}  // namespace weft
