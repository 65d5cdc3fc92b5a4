#include "training/log/run_log.h"

#include <cmath>

#include "autograd/check.h"
#include "training/checkpoint/files.h"
#include "training/log/clock.h"

namespace weft {

RunLog::Rank0::Rank0(const RunLogOptions& options, const Warn& warn)
    : metrics(options.folder + "/metrics.jsonl", options.resume_step, warn),
      samples(options.folder + "/samples.txt", warn) {
  if (options.tensorboard) tensorboard.emplace(options.folder, options.resume_step, warn);
}

RunLog::RunLog(const RunLogOptions& options) : folder_(options.folder) {
  const bool first = options.rank == 0;
  if (first && options.console) console_.emplace(options.steps, options.every);
  // To the console alone: the log file may be what has no room.
  warn_ = warn_once([this](const std::string& message) {
    if (console_) console_->message("weft: warning: " + message);
  });
  make_folder(folder_ + "/log");
  rank_log_.emplace(folder_ + "/log", options.rank, warn_);
  if (first) rank0_.emplace(options, warn_);
  if (const int64_t lines = rank0_ ? rank0_->metrics.unreadable() : 0; lines > 0)
    warning(text(lines, " lines of ", folder_, "/metrics.jsonl cannot be read and were left out"));
}

void RunLog::environment(const RunEnvironment& environment) {
  if (!rank0_) return;
  try {
    write_environment(folder_ + "/environment.json", environment);
  } catch (const Error& error) {
    warn_(text(error.what(), " (", error.where, "); the run continues without environment.json"));
  }
}

void RunLog::step(const StepRecord& record, const Pace& pace) {
  if (!rank0_) return;
  StepRecord timed = record;
  if (!std::isfinite(timed.time)) timed.time = wall_seconds();
  rank0_->metrics.step(timed);
  if (rank0_->tensorboard) rank0_->tensorboard->step(timed);
  if (console_) console_->step(timed, pace);
}

void RunLog::event(Event event, int64_t step, const EventFields& fields) {
  if (rank0_) rank0_->metrics.event(event, step, fields);
}

void RunLog::sample(int64_t step, const std::string& sample) {
  if (!rank0_) return;
  rank0_->metrics.event(Event::sample, step);
  rank0_->samples.write(step, sample);
  if (rank0_->tensorboard) rank0_->tensorboard->text("sample", step, sample);
  if (console_) console_->message(text("sample after step ", step, ": ", sample));
}

void RunLog::finish() {
  if (console_) console_->finish();
}

void RunLog::rewind(int64_t from, int64_t to) {
  if (!rank0_) return;
  rank0_->metrics.rewind(to);
  rank0_->metrics.event(Event::rewind, to, {{"from", from}});
  if (rank0_->tensorboard) rank0_->tensorboard->rewind(to);
}

void RunLog::measured(const StepRecord& record) {
  if (!rank0_) return;
  rank0_->metrics.measured(record);
  if (rank0_->tensorboard) rank0_->tensorboard->evaluation(record);
}

void RunLog::info(const std::string& message) {
  rank_log_->write(Level::info, message);
  if (console_) console_->message("weft: " + message);
}

void RunLog::warning(const std::string& message) {
  rank_log_->write(Level::warning, message);
  if (console_) console_->message("weft: warning: " + message);
}

}  // namespace weft
