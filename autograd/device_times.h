#pragma once
// How long a device works on what it is asked for.

#include <cstdint>
#include <functional>
#include <vector>

#include "autograd/device.h"

namespace weft {

// Milliseconds of once(0), once(1), ... once(repeats - 1), each on the device's own clock. A GPU is held back
// until the host is some calls ahead, so that what the host does beside it counts only where it takes longer
// than the work itself.
std::vector<double> device_times(Device device, int64_t repeats, const std::function<void(int64_t)>& once);
// Waits until a device has done all that it was asked for.
void wait_for(Device device);

namespace cpu {
void device_times(std::vector<double>& ms, const std::function<void(int64_t)>& once);
inline void synchronize() {}
}  // namespace cpu
namespace cuda {
void device_times(std::vector<double>& ms, const std::function<void(int64_t)>& once);
void synchronize();
}  // namespace cuda

}  // namespace weft
