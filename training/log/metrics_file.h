#pragma once
// metrics.jsonl: one line of JSON a step, and one an event, in the order in which they came about.
//   {"step":10,"tokens":81920,"loss":3.12,…,"time":1780000000.1}     keys as in StepRecord; non-finite = null
//   {"event":"checkpoint","step":10,"time":1780000000.2,…}

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "training/log/append_file.h"
#include "training/log/step_record.h"

namespace weft {

enum class Event { resume, checkpoint, skip, rewind, sample, fault };
const char* name_of(Event event);

// What else an event line says.
using EventFields = std::vector<std::pair<std::string, std::variant<int64_t, double, std::string>>>;

// Whether the evaluation after this step was stopped, and nobody has made up for it yet.
bool evaluation_was_stopped(const std::string& path, int64_t step);

// Of the last step up to `step` that was applied; NaN where there is none.
struct LastLearned {
  double loss = NAN, grad_norm = NAN;
};
LastLearned last_learned(const std::string& path, int64_t step);

class MetricsFile {
 public:
  // resume_step: none for a new run (Error cannot_create if the file exists); else the step that the run
  // continues from. Lines of later steps go, because these steps come again; lines that a crash cut off go
  // too; faults and resumes stay: they tell of processes, not of steps.
  MetricsFile(std::string path, std::optional<int64_t> resume_step, Warn warn);

  void step(const StepRecord& record);
  void event(Event event, int64_t step, const EventFields& fields = {});

  // The run goes on from an earlier step, on other data: the lines of later steps go, all events stay.
  void rewind(int64_t step);
  // Puts what an evaluation measured late into the line of its step.
  void measured(const StepRecord& record);

  int64_t unreadable() const { return unreadable_; }  // lines that a new start left out, but for the last

 private:
  void prune(int64_t step, bool keep_events);

  std::string path_;
  Warn warn_;
  int64_t unreadable_ = 0;
  std::optional<AppendFile> file_;
};

}  // namespace weft
