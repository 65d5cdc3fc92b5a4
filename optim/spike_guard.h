#pragma once
// Decides, from the loss and the norm of the gradient, whether a step is applied. All ranks that give it the
// same numbers decide alike.

#include <algorithm>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

namespace weft {

struct SpikeGuardConfig {
  int64_t max_skips = 10;   // skipped steps within the window that are borne
  int64_t window = 64;      // steps that skips and statistics look back on
  double spike_zscore = 0;  // skip a loss or norm this many deviations above its mean; 0: never
  int64_t rewinds = 1;      // times the run may go back before it gives up
};

class SpikeGuard {
 public:
  // skip: leave the weights alone and go on. rewind: skip, and go back to the last good checkpoint. stop:
  // the same trouble after the last permitted rewind; the run ends with Exit::numerics.
  enum class Action { apply, skip, rewind, stop };
  struct Verdict {
    Action action = Action::apply;
    std::string reason;  // why it is not applied: "the loss is nan"
  };

  explicit SpikeGuard(const SpikeGuardConfig& config);

  // Once a step, before the update. A value that is not finite, or a spike, is a skip; more than max_skips
  // of them within the window, a rewind. Statistics are those of applied steps alone.
  Verdict judge(int64_t step, double loss, double gradient_norm);

  // Asks for a rewind whatever the numbers are: the weights themselves are lost. False after the last
  // permitted one.
  bool go_back();

  // For the checkpoint; the first number is rewinds(). restore() keeps the larger number of rewinds, so that
  // going back does not forget that it did. Exit::data for something that state() did not write.
  std::vector<double> state() const;
  void restore(const std::vector<double>& state);

  int64_t rewinds() const { return rewinds_; }
  // At least so many, which a run that was killed after them still knows.
  void remember_rewinds(int64_t rewinds) { rewinds_ = std::max(rewinds_, rewinds); }

 private:
  // What is wrong with a value; empty if nothing.
  std::string fault(const char* name, double value, const std::deque<double>& history) const;

  SpikeGuardConfig config_;
  std::deque<double> losses_, norms_;  // of the last applied steps
  std::deque<int64_t> skips_;          // steps
  int64_t rewinds_ = 0;
};

}  // namespace weft
