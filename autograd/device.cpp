#include "autograd/device.h"

#include <atomic>
#include <cstdlib>
#include <string>

#ifdef WEFT_CUDA
#include "autograd/cuda/runtime.h"
#endif

namespace weft {
namespace {

Device device_of_environment() {
  const char* const value = std::getenv("WEFT_DEVICE");
  const std::string name = value == nullptr ? "cpu" : value;
  if (name != "cpu" && name != "cuda") throw Error(Exit::usage, "WEFT_DEVICE is cpu or cuda, not " + name);
  return name == "cuda" ? Device::cuda : Device::cpu;
}

std::atomic<Device>& chosen() {
  static std::atomic<Device> device = device_of_environment();
  return device;
}

}  // namespace

const char* name_of(Device device) {
  constexpr const char* names[] = {"cpu", "cuda", "meta"};
  return names[static_cast<int>(device)];
}

Device default_device() { return chosen(); }
void set_default_device(Device device) { chosen() = device; }

void require_device(Device device) {
  if (device != Device::cuda) return;
#ifdef WEFT_CUDA
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaSuccess && count > 0) return;
  throw Error(Exit::usage, text("no CUDA device: ", cudaGetErrorString(code)), "", "compute on the CPU");
#else
  throw Error(Exit::usage, "this build has no CUDA kernels", "", "build with -DWEFT_CUDA=ON");
#endif
}

}  // namespace weft
