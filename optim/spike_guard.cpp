#include "optim/spike_guard.h"

#include <algorithm>
#include <cmath>

#include "autograd/check.h"

namespace weft {

SpikeGuard::SpikeGuard(const SpikeGuardConfig& config) : config_(config) {
  CHECK(config.window >= 1, "spike guard: window ", config.window);
}

SpikeGuard::Verdict SpikeGuard::judge(int64_t step, double loss, double gradient_norm) {
  std::string reason = fault("loss", loss, losses_);
  if (reason.empty()) reason = fault("gradient norm", gradient_norm, norms_);
  while (!skips_.empty() && skips_.front() <= step - config_.window) skips_.pop_front();
  if (reason.empty()) {
    losses_.push_back(loss);
    norms_.push_back(gradient_norm);
    if (static_cast<int64_t>(losses_.size()) > config_.window) {
      losses_.pop_front();
      norms_.pop_front();
    }
    return {Action::apply, ""};
  }
  skips_.push_back(step);
  if (static_cast<int64_t>(skips_.size()) <= config_.max_skips) return {Action::skip, reason};
  reason += text("; ", skips_.size(), " of the last ", config_.window, " steps were not applied");
  return {go_back() ? Action::rewind : Action::stop, reason};
}

bool SpikeGuard::go_back() {
  if (rewinds_ >= config_.rewinds) return false;
  ++rewinds_;
  skips_.clear();
  return true;
}

std::string SpikeGuard::fault(const char* name, double value, const std::deque<double>& history) const {
  if (!std::isfinite(value))
    return text("the ", name, " is ", std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf");
  // Too few values say nothing about their spread.
  const int64_t needed = std::min<int64_t>(config_.window, 16);
  const auto n = static_cast<double>(history.size());
  if (config_.spike_zscore <= 0 || n < static_cast<double>(needed)) return {};
  double mean = 0, variance = 0;
  for (const double x : history) mean += x / n;
  for (const double x : history) variance += (x - mean) * (x - mean) / n;
  // Values that hardly differ must not make a spike of the next digit.
  const double deviation = std::max({std::sqrt(variance), 1e-3 * std::abs(mean), 1e-12});
  const double z = (value - mean) / deviation;
  if (z <= config_.spike_zscore) return {};
  return text("the ", name, " ", value, " is ", z, " deviations above the mean ", mean, " of the last ",
              history.size(), " steps");
}

std::vector<double> SpikeGuard::state() const {
  std::vector<double> out{static_cast<double>(rewinds_), static_cast<double>(skips_.size()),
                          static_cast<double>(losses_.size())};
  for (const int64_t step : skips_) out.push_back(static_cast<double>(step));
  out.insert(out.end(), losses_.begin(), losses_.end());
  out.insert(out.end(), norms_.begin(), norms_.end());
  return out;
}

void SpikeGuard::restore(const std::vector<double>& state) {
  const auto size = static_cast<double>(state.size());
  const bool readable = state.size() >= 3 && state[0] >= 0 && state[1] >= 0 && state[2] >= 0 &&
                        3 + state[1] + 2 * state[2] == size;
  if (!readable)
    throw Error(Exit::data, "the state of the spike guard cannot be read", "", "use another checkpoint");
  const auto skips = state.begin() + 3;
  const auto losses = skips + static_cast<int64_t>(state[1]);
  const auto norms = losses + static_cast<int64_t>(state[2]);
  rewinds_ = std::max(rewinds_, static_cast<int64_t>(state[0]));
  skips_.assign(skips, losses);
  losses_.assign(losses, norms);
  norms_.assign(norms, state.end());
  // A smaller window than the one that wrote it.
  while (static_cast<int64_t>(losses_.size()) > config_.window) {
    losses_.pop_front();
    norms_.pop_front();
  }
}

}  // namespace weft
