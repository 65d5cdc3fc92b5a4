#include "training/log/step_timer.h"

#include <algorithm>
#include <utility>

#include "autograd/check.h"

namespace weft {

StepTimer::StepTimer(int64_t steps_left, Now now)
    : now_(std::move(now)), made_(now_()), step_start_(made_), steps_left_(steps_left) {}

StepTimer::Span::Span(StepTimer& timer, double Sums::*part)
    : timer_(timer), part_(part), before_(timer.sums_), start_(timer.now_()) {
  ++timer_.open_;
}

StepTimer::Span::~Span() {
  --timer_.open_;
  Sums& sums = timer_.sums_;
  if (part_ == &Sums::pause) sums = before_;
  // Not +=, so that a span inside one of its kind does not count twice.
  sums.*part_ = before_.*part_ + timer_.now_() - start_;
}

StepTimes StepTimer::finish_step(int64_t tokens) {
  CHECK(open_ == 0, "finish_step: a span is still open");
  constexpr double fading = 0.9;
  const double now = now_();
  const double seconds = std::max(now - step_start_ - sums_.pause, 1e-9);
  const double count = static_cast<double>(tokens);
  // The first step warms caches, makes plans and allocates.
  const double weight = finished_ == 1 ? 0 : fading;
  recent_steps_ = weight * recent_steps_ + 1;
  recent_seconds_ = weight * recent_seconds_ + seconds;
  recent_tokens_ = weight * recent_tokens_ + count;
  ++finished_;
  const StepTimes times{seconds, sums_.data, sums_.comm, count / seconds};
  step_start_ = now;
  sums_ = {};
  return times;
}

Pace StepTimer::pace() const {
  Pace pace;
  pace.elapsed_s = now_() - made_;
  if (finished_ == 0) return pace;
  pace.tokens_per_s = recent_tokens_ / recent_seconds_;
  pace.eta_s =
      static_cast<double>(std::max<int64_t>(steps_left_ - finished_, 0)) * recent_seconds_ / recent_steps_;
  return pace;
}

}  // namespace weft
