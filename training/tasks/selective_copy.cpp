#include "training/tasks/selective_copy.h"

#include <algorithm>

#include "autograd/check.h"

namespace weft {

void SelectiveCopyConfig::fields(FieldVisitor& f) {
  f("symbols", symbols, "number of different tokens to copy from", {.min = 2, .max = 1e6});
  f("length", length, "length of an example, markers included", {.unit = "tokens", .min = 2, .max = 1e8});
  f("count", count, "number of tokens to copy, at most length / 2", {.unit = "tokens", .min = 1});
}

SelectiveCopy::SelectiveCopy(const Config& config) : config_(config) {
  if (2 * config.count > config.length)
    throw Error(Exit::recipe,
                text("selective_copy of ", config.count, " tokens needs a length of ", 2 * config.count,
                     ", it has ", config.length),
                "count", "copy fewer, or make it longer");
}

Example SelectiveCopy::make(Draws& draws) const {
  const int64_t body = config_.length - config_.count;
  std::vector<int64_t> places = draws.choose(config_.count, body);
  std::sort(places.begin(), places.end());
  Example e;
  e.tokens.assign(static_cast<size_t>(body), 0);
  e.tokens.resize(static_cast<size_t>(config_.length), 1);
  e.targets.assign(static_cast<size_t>(config_.length), -1);
  for (int64_t i = 0; i < config_.count; ++i)
    e.tokens[places[i]] = e.targets[body + i] = static_cast<int32_t>(2 + draws.below(config_.symbols));
  return e;
}

}  // namespace weft
