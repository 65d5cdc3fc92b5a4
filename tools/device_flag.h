#pragma once
// The flag --device of commands that compute.

#include <string>

namespace weft {

constexpr const char* kDeviceHelp = "default: WEFT_DEVICE in the environment, else a GPU if there is one";

// From here on tensors are made on the device of that name, or, where it is empty, on that of WEFT_DEVICE or
// the best there is. Of several ranks on a machine each takes its own GPU, in turn. Errors: Exit::usage.
void compute_on(const std::string& device);

}  // namespace weft
