#pragma once
// Which CUDA a run uses, for its records.

#include <string>

namespace weft {

// Of the runtime, and the newest that the driver serves: "13.0, driver 13.1". Empty in a build without CUDA.
std::string cuda_version();

}  // namespace weft
