#pragma once
// A failure that several ranks throw, although one of them is at fault.

#include <utility>

#include "autograd/check.h"

namespace weft {

struct RankError : Error {
  RankError(int at_fault, Error error) : Error(std::move(error)), rank(at_fault) {}

  int rank;
};

}  // namespace weft
