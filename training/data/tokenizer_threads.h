#pragma once
// A function on several threads at once.

#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace weft {

// Calls work(0) .. work(threads - 1), each on its own thread, and waits; throws again what one of them threw
// first.
template <class F>
void run_threads(int threads, F&& work) {
  std::exception_ptr failure;
  std::mutex mutex;
  {
    std::vector<std::jthread> running;
    for (int i = 0; i < threads; ++i)
      running.emplace_back([&, i] {
        try {
          work(i);
        } catch (...) {
          const std::lock_guard lock(mutex);
          if (!failure) failure = std::current_exception();
        }
      });
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace weft
