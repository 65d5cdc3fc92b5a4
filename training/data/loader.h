#pragma once
// Reads batches ahead of the training loop on a thread of its own.

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "training/data/dataset.h"

namespace weft {

class Loader {
 public:
  // A step takes the next `samples_per_step` samples of the order (the global batch); this loader hands out
  // samples [begin, end) of each step, from `first_step` on. Up to `ahead` batches are kept ready.
  struct Config {
    int64_t samples_per_step = 1;
    int64_t begin = 0, end = 1;  // equal: an empty batch a step
    int64_t first_step = 0;
    int64_t ahead = 2;
  };

  // The dataset must outlive the loader.
  Loader(const Dataset& dataset, SampleOrder order, Config config);
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // The batch of the next step; waits for it. Errors: what reading threw, again on every later call.
  Batch next();
  // Seconds that next() has waited in all: zero as long as reading keeps up.
  double waited() const { return waited_; }

 private:
  void run(const std::stop_token& stop);

  const Dataset& dataset_;
  SampleOrder order_;
  Config config_;
  double waited_ = 0;

  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<Batch> ready_;
  std::exception_ptr failure_;
  std::jthread thread_;  // last: it starts when all else is there, and is joined before any of it goes
};

}  // namespace weft
