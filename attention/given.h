#pragma once
// Who may write over what a mechanism is called with.

#include "attention/part.h"

namespace weft {

// While it lives, the projections in a block are their mechanism's to overwrite: nobody else holds them, no
// op keeps them for its way back, and whoever made them reads them no more.
class GivenAway {
 public:
  explicit GivenAway(const Block& block, bool given = true) : previous_(current_) {
    current_ = given ? &block : nullptr;
  }
  ~GivenAway() { current_ = previous_; }
  GivenAway(const GivenAway&) = delete;
  GivenAway& operator=(const GivenAway&) = delete;

  static bool includes(const Block& block) { return current_ == &block; }

 private:
  static inline thread_local const Block* current_ = nullptr;
  const Block* previous_;
};

}  // namespace weft
