#include "training/data/loader.h"

#include <chrono>
#include <utility>

#include "autograd/check.h"

namespace weft {

Loader::Loader(const Dataset& dataset, SampleOrder order, Config config)
    : dataset_(dataset), order_(std::move(order)), config_(config) {
  CHECK(0 <= config.begin && config.begin <= config.end && config.end <= config.samples_per_step,
        "Loader: share [", config.begin, ", ", config.end, ") of ", config.samples_per_step, " samples");
  CHECK(config.first_step >= 0 && config.ahead > 0, "Loader: step ", config.first_step, ", ahead ",
        config.ahead);
  thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
}

void Loader::run(const std::stop_token& stop) {
  try {
    for (int64_t step = config_.first_step; !stop.stop_requested(); ++step) {
      const auto samples = order_.step(step, config_.samples_per_step);
      Batch batch = dataset_.batch({samples.data() + config_.begin, samples.data() + config_.end});
      std::unique_lock lock(mutex_);
      const auto has_room = [this] { return static_cast<int64_t>(ready_.size()) < config_.ahead; };
      if (!changed_.wait(lock, stop, has_room)) return;
      ready_.push_back(std::move(batch));
      changed_.notify_all();
    }
  } catch (...) {
    const std::scoped_lock lock(mutex_);
    failure_ = std::current_exception();
    changed_.notify_all();
  }
}

Batch Loader::next() {
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !ready_.empty() || failure_; });
  waited_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (ready_.empty()) std::rethrow_exception(failure_);  // only after all batches read before it
  Batch batch = std::move(ready_.front());
  ready_.pop_front();
  changed_.notify_all();
  return batch;
}

}  // namespace weft
