#pragma once
// The types that ops over whole segments (linear_run, delta_run) take on the default device: a GPU's kernels
// have no f64.

#include <vector>

#include "attention/scan_kernel.h"

namespace weft {

inline std::vector<Dtype> served(std::vector<Dtype> types) {
  std::erase_if(types, [](Dtype t) { return !has_scan_kernel(default_device(), t, 1, 1); });
  return types;
}

}  // namespace weft
