#pragma once
// For the C names of the lab's libraries.

#include <cstdio>

#include "autograd/check.h"

namespace weft {

// f(), with an Error as a line on stderr and an exit code.
template <class F>
int guarded(F f) {
  try {
    f();
    return 0;
  } catch (const Error& e) {
    std::fprintf(stderr, "%s (%s)\n", e.what(), e.advice.c_str());
    return static_cast<int>(e.code);
  }
}

}  // namespace weft
