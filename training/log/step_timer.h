#pragma once
// Where the time of a step goes, and how long the run will take.

#include <cstdint>

#include "training/log/clock.h"

namespace weft {

struct StepTimes {
  double step_s = 0;  // since the last step ended, without pauses
  double data_s = 0;
  double comm_s = 0;
  double tokens_per_s = 0;  // of this step alone
};

struct Pace {
  double tokens_per_s = 0;  // smoothed over about the last ten steps; the first, slow one counts only alone
  double eta_s = 0;         // seconds that the remaining steps take at this pace, without pauses
  double elapsed_s = 0;     // since the timer was made, with pauses
};

// One a rank; for the thread that runs the steps. The first step begins with the timer.
//   { auto span = timer.data(); batch = loader.next(); }
//   …
//   const StepTimes times = timer.finish_step(tokens);
//   { auto span = timer.pause(); evaluate(); }
class StepTimer {
 public:
  // steps_left: of the whole run, for the ETA.
  explicit StepTimer(int64_t steps_left, Now now = monotonic_seconds);

 private:
  struct Sums {
    double data = 0, comm = 0, pause = 0;
  };

 public:
  // Counts the seconds until it goes out of scope. Spans of one kind may nest; what happens inside a pause
  // counts as pause only.
  class Span {
   public:
    Span(StepTimer& timer, double Sums::*part);
    ~Span();
    Span(const Span&) = delete;
    Span& operator=(const Span&) = delete;

   private:
    StepTimer& timer_;
    double Sums::*part_;
    Sums before_;
    double start_;
  };
  [[nodiscard]] Span data() { return {*this, &Sums::data}; }
  [[nodiscard]] Span communication() { return {*this, &Sums::comm}; }
  [[nodiscard]] Span pause() { return {*this, &Sums::pause}; }
  // For a wait that was measured elsewhere, as by events on a device.
  void add_communication(double seconds) { sums_.comm += seconds; }

  // tokens: of this step, all ranks. The next step begins. No span may be open.
  StepTimes finish_step(int64_t tokens);
  Pace pace() const;

 private:
  Now now_;
  double made_, step_start_;
  int64_t steps_left_, finished_ = 0;
  int open_ = 0;
  Sums sums_;
  double recent_steps_ = 0, recent_seconds_ = 0, recent_tokens_ = 0;  // sums with fading weights
};

}  // namespace weft
