#pragma once
// What a GPU could do at most, to say which share of it a run reaches.

#include <optional>
#include <string>

#include "autograd/dtype.h"

namespace weft {

// FLOP/s of dense products as its maker states them, of operands in this type and as weft multiplies them:
// f32 without rounding to tf32. None where it is not known here.
std::optional<double> peak_flops(const std::string& gpu, Dtype dtype);

// What share of it so many operations in so many seconds are; none above 1, which no device can do.
std::optional<double> share_of_peak(double operations, double seconds, double peak);

}  // namespace weft
