#include "autograd/device_times.h"

#include <chrono>

namespace weft {

std::vector<double> device_times(Device device, int64_t repeats, const std::function<void(int64_t)>& once) {
  std::vector<double> ms(static_cast<size_t>(repeats));
  ON_DEVICE(device, device_times(ms, once));
  return ms;
}

void wait_for(Device device) { ON_DEVICE(device, synchronize()); }

namespace cpu {
void device_times(std::vector<double>& ms, const std::function<void(int64_t)>& once) {
  using Clock = std::chrono::steady_clock;
  for (size_t i = 0; i < ms.size(); ++i) {
    const auto start = Clock::now();
    once(static_cast<int64_t>(i));
    ms[i] = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  }
}
}  // namespace cpu

}  // namespace weft
