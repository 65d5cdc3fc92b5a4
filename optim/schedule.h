#pragma once
// Learning-rate schedules: pure functions of the step, so a resumed run needs no state.

#include <cstdint>
#include <string>

namespace weft {

struct Schedule {
  // cosine: half a wave from 1 to `floor` (Loshchilov and Hutter, "SGDR", ICLR 2017). wsd: warm up, stay,
  // and fall linearly over the last `decay` steps (Hu et al., "MiniCPM", 2024). constant: warm up, stay.
  enum class Kind { cosine, wsd, constant } kind = Kind::cosine;
  int64_t steps = 1;   // of the whole run
  int64_t warmup = 0;  // steps of a linear rise that reaches 1 at step `warmup`
  int64_t decay = 0;   // wsd only
  double floor = 0;    // at the last step: lowest learning rate over the highest

  // Share of the highest learning rate at a step counted from 0; never 0 while warming up. Beyond the last
  // step the value of the last step holds.
  double at(int64_t step) const;

  // "cosine", "wsd" or "constant"; Exit::recipe for anything else.
  static Kind kind_of(const std::string& name);
};

}  // namespace weft
