#include "training/log/clock.h"

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <ctime>

namespace weft {

double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

double monotonic_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string iso_time(double seconds) {
  const auto milliseconds = static_cast<int64_t>(std::floor(seconds * 1000));
  const time_t whole = static_cast<time_t>(milliseconds / 1000);
  tm utc{};
  gmtime_r(&whole, &utc);
  char date[32], out[48];
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &utc);
  std::snprintf(out, sizeof out, "%s.%03dZ", date, static_cast<int>(milliseconds % 1000));
  return out;
}

}  // namespace weft
