#pragma once
// The console of rank 0, on stderr: on a terminal a bar that is redrawn in place, elsewhere one line a step.

#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>

#include "training/log/step_record.h"
#include "training/log/step_timer.h"

namespace weft {

class Progress {
 public:
  // every: off a terminal, the steps between two lines (the first, the last and those with a validation loss
  // have one anyway). fd: where to write.
  Progress(int64_t steps, int64_t every, int fd = 2);
  ~Progress();  // finish()
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void step(const StepRecord& record, const Pace& pace);
  // A line of its own, above the bar. Control characters become spaces. Any thread.
  void message(std::string_view line);
  // Leaves the bar where it is and begins a new line, so that other output may follow.
  void finish();

 private:
  void above_bar(const std::string& line);
  void write(const std::string& bytes) const;

  const int64_t steps_, every_;
  const int fd_;
  const bool terminal_;
  std::mutex mutex_;
  bool any_step_ = false;
  std::string bar_;  // what the terminal's last line shows; empty: nothing
  double drawn_;     // when
};

}  // namespace weft
