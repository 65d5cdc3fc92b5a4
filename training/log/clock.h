#pragma once
// Time, for what is logged.

#include <functional>
#include <string>

namespace weft {

double wall_seconds();       // since 1970
double monotonic_seconds();  // never goes back
using Now = std::function<double()>;

// UTC, "2026-11-02T09:30:00.123Z". seconds: since 1970.
std::string iso_time(double seconds);

}  // namespace weft
