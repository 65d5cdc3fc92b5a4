#pragma once
// The device for which tensors on meta stand: the plan of a run takes the code paths that the run would
// take.

#include "autograd/device.h"

namespace weft {

// Where work on `device` is computed: there, but for meta on the device of the last plan_for(), else on
// default_device().
Device computed_on(Device device);
// From here on meta stands for this device, whether or not it is there; Device::meta: for default_device().
void plan_for(Device device);

}  // namespace weft
