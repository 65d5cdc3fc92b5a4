#pragma once
// Where the start of a program goes: seconds by name, summed over all spans of that name.

#include <chrono>
#include <string>
#include <utility>
#include <vector>

namespace weft {

// From its construction to its end. Spans may nest; the outer one counts the inner one's time too.
class StartSpan {
 public:
  explicit StartSpan(const char* name) : name_(name) {}
  ~StartSpan();
  StartSpan(const StartSpan&) = delete;
  StartSpan& operator=(const StartSpan&) = delete;

 private:
  const char* name_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// In the order in which the names first came.
std::vector<std::pair<std::string, double>> start_spans();
// Seconds since the process began.
double process_age();

}  // namespace weft
