#include "autograd/device.h"

#include <atomic>
#include <cstdlib>
#include <string>

#include "autograd/start_span.h"

#ifdef WEFT_CUDA
#include "autograd/cuda/runtime.h"
#endif

namespace weft {
namespace {

constexpr const char* kVariable = "WEFT_DEVICE";

// Empty is as if it were not there: WEFT_DEVICE= weft train ... undoes an export.
bool named_in_environment() {
  const char* const value = std::getenv(kVariable);
  return value != nullptr && *value != 0;
}

Device device_of_environment() {
  const std::string name = named_in_environment() ? std::getenv(kVariable) : "cpu";
  if (name != "cpu" && name != "cuda")
    throw Error(Exit::usage, "the device is cpu or cuda, not " + name, kVariable);
  return name == "cuda" ? Device::cuda : Device::cpu;
}

std::atomic<Device> chosen{Device::meta};  // meta: nobody has, so the environment decides

// How many GPUs there are, and why not one if it is none.
int count_gpus([[maybe_unused]] std::string* why) {
#ifdef WEFT_CUDA
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) *why = cudaGetErrorString(code);
  return code == cudaSuccess ? count : 0;
#else
  *why = "this build has no CUDA kernels";
  return 0;
#endif
}

}  // namespace

const char* name_of(Device device) {
  constexpr const char* names[] = {"cpu", "cuda", "meta"};
  return names[static_cast<int>(device)];
}

Device default_device() {
  Device nobody = Device::meta;  // a choice made meanwhile stands
  if (chosen == nobody) chosen.compare_exchange_strong(nobody, device_of_environment());
  return chosen;
}

void use_device(Device device, [[maybe_unused]] int index) {
  if (device == Device::cuda) {
    const StartSpan span("driver");
    std::string why;
    const int count = count_gpus(&why);
    if (count == 0)
      throw Error(Exit::recipe, "no CUDA device: " + why, "--device cuda", "compute on the CPU");
#ifdef WEFT_CUDA
    CUDA_CHECK(cudaSetDevice(index % count));
#endif
  }
  chosen = device;
}

Device best_device() {
  if (named_in_environment()) return device_of_environment();
  std::string why;
  return count_gpus(&why) > 0 ? Device::cuda : Device::cpu;
}

std::string describe_device(Device device) {
#ifdef WEFT_CUDA
  if (device == Device::cuda) {
    int current = 0;
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDevice(&current));
    CUDA_CHECK(cudaGetDeviceProperties(&properties, current));
    return properties.name;
  }
#endif
  return name_of(device);
}

}  // namespace weft
