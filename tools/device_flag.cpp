#include "tools/device_flag.h"

#include "autograd/device.h"
#include "distributed/environment.h"
#include "tools/flags.h"

namespace weft {

void compute_on(const std::string& name) {
  const Device device =
      name.empty() ? best_device()
                   : flag_choice<Device>("--device", name, {{"cpu", Device::cpu}, {"cuda", Device::cuda}});
  use_device(device, detect_launch().local_rank);
}

}  // namespace weft
