#include "training/tasks/induction.h"

namespace weft {

void InductionConfig::fields(FieldVisitor& f) {
  f("symbols", symbols, "number of different tokens besides the trigger", {.min = 2, .max = 1e8});
  f("length", length, "length of an example", {.unit = "tokens", .min = 3, .max = 1e8});
}

Example Induction::make(Draws& draws) const {
  const int64_t last = config_.length - 1;
  Example e;
  for (int64_t i = 0; i < last; ++i)
    e.tokens.push_back(static_cast<int32_t>(1 + draws.below(config_.symbols)));
  e.tokens.push_back(0);
  e.targets.assign(e.tokens.size(), -1);
  const int64_t trigger = draws.below(last - 1);  // a symbol stands after it
  e.tokens[trigger] = 0;
  e.targets[last] = e.tokens[trigger + 1];
  return e;
}

}  // namespace weft
