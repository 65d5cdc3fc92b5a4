#pragma once
// FEW=n in the environment: the same kernels on less, for tools under which a launch takes a millisecond and
// a million reads of shared memory a second (tools/gpu_check.sh sanitize). Gradient checks then take the
// difference at n elements of each input.

#include <cstdlib>

namespace weft {

inline bool few() { return std::getenv("FEW") != nullptr; }
inline int differences(int otherwise) { return few() ? std::atoi(std::getenv("FEW")) : otherwise; }

}  // namespace weft
