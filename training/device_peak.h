#pragma once
// The peak rate of a GPU, of which a run reaches a share (mfu).

#include <optional>
#include <string>

#include "autograd/dtype.h"

namespace weft {

// FLOP/s of dense products as its maker states them, of operands in this type and as weft multiplies them:
// f32 without rounding to tf32. None where it is not known here.
std::optional<double> peak_flops(const std::string& gpu, Dtype dtype);

// The share of the peak that this many operations in this time are; none above 1, which is impossible.
std::optional<double> share_of_peak(double operations, double seconds, double peak);

}  // namespace weft
