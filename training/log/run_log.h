#pragma once
// All that one rank of a run writes and prints: rank 0 the metrics, TensorBoard events, samples, environment
// and console, every rank its own log/rank-NNNN.txt. A full disk gives one warning, and the run goes on.

#include <cstdint>
#include <optional>
#include <string>

#include "training/log/environment_file.h"
#include "training/log/metrics_file.h"
#include "training/log/progress.h"
#include "training/log/step_timer.h"
#include "training/log/tensorboard.h"
#include "training/log/text_logs.h"

namespace weft {

struct RunLogOptions {
  std::string folder;  // of the run; it and its `log` are made where missing
  int rank = 0;
  int64_t steps = 0;  // of the whole run
  int64_t every = 1;  // log.every
  bool tensorboard = true;
  bool console = true;  // false: files only
  // None: a new run; else the step that the run continues from (0: from the start).
  std::optional<int64_t> resume_step = {};
};

class RunLog {
 public:
  // Error (cannot_create) where the folder cannot be written, or a new run finds the metrics of another.
  explicit RunLog(const RunLogOptions& options);
  RunLog(const RunLog&) = delete;
  RunLog& operator=(const RunLog&) = delete;

  // On ranks other than 0 these seven do nothing.
  void environment(const RunEnvironment& environment);
  void step(const StepRecord& record, const Pace& pace);
  void event(Event event, int64_t step, const EventFields& fields = {});
  void sample(int64_t step, const std::string& text);  // to samples.txt, TensorBoard and the console
  // After step `from` the run goes back to the checkpoint of step `to` and on with other data.
  void rewind(int64_t from, int64_t to);
  // What an evaluation measured after its step was written.
  void measured(const StepRecord& record);
  void finish();  // ends the bar; to be called before results are printed

  // Into the rank's log; on rank 0 also on the console. Any thread.
  void info(const std::string& message);
  void warning(const std::string& message);

 private:
  struct Rank0 {
    Rank0(const RunLogOptions& options, const Warn& warn);
    MetricsFile metrics;
    std::optional<TensorBoardFile> tensorboard;
    SamplesFile samples;
  };

  std::string folder_;
  std::optional<Progress> console_;  // of rank 0, where wanted
  Warn warn_;
  std::optional<RankLog> rank_log_;
  std::optional<Rank0> rank0_;
};

}  // namespace weft
