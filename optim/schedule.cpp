#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "autograd/check.h"

namespace weft {

double Schedule::at(int64_t step) const {
  const auto ratio = [](int64_t a, int64_t b) {
    return std::clamp(static_cast<double>(a) / static_cast<double>(std::max<int64_t>(1, b)), 0.0, 1.0);
  };
  const double rise = step < warmup ? ratio(step + 1, warmup + 1) : 1.0;
  switch (kind) {
    case Kind::constant: return rise;
    case Kind::cosine: {
      if (step < warmup) return rise;
      const double done = ratio(step - warmup, steps - 1 - warmup);
      return floor + (1 - floor) * 0.5 * (1 + std::cos(std::numbers::pi * done));
    }
    case Kind::wsd: {
      if (decay == 0) return rise;
      const double done = ratio(step + 1 - (steps - decay), decay);
      return std::min(rise, 1 - (1 - floor) * done);
    }
  }
  return rise;
}

Schedule::Kind Schedule::kind_of(const std::string& name) {
  if (name == "cosine") return Kind::cosine;
  if (name == "wsd") return Kind::wsd;
  if (name == "constant") return Kind::constant;
  throw Error(Exit::recipe, "there is no schedule '" + name + "'", "optim.schedule",
              "choose cosine, wsd or constant");
}

}  // namespace weft
