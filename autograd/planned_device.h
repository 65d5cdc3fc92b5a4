#pragma once
// On which device the work of tensors on meta would be done: a plan of a run follows the paths that run
// takes.

#include "autograd/device.h"

namespace weft {

// Where what is made on `device` is computed: there, and of meta on what plan_for() said last, else on
// default_device().
Device computed_on(Device device);
// From here on meta stands for this device, be there one or not; Device::meta: for default_device().
void plan_for(Device device);

}  // namespace weft
