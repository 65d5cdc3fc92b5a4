#pragma once
// Where a tensor lives, and the one dispatch macro. `meta` carries shapes only: no memory, no kernels, which
// makes a dry run of a training step the memory planner.

#include <cstdint>
#include <string>

#include "autograd/check.h"

namespace weft {

enum class Device : uint8_t { cpu, cuda, meta };

const char* name_of(Device device);

// The device of tensors that name none: that of use_device(), else of WEFT_DEVICE in the environment (cpu or
// cuda), else cpu.
Device default_device();
// index: which GPU, modulo their number. Throws Exit::recipe if this build or this machine has none.
void use_device(Device device, int index = 0);
// What WEFT_DEVICE says, else a GPU if this build and this machine have one.
Device best_device();
// "cpu", or the GPU's name.
std::string describe_device(Device device);

}  // namespace weft

// ON_DEVICE(x.device(), relu(y, x)) calls cpu::relu(y, x) or cuda::relu(y, x). A kernel that is missing for a
// device is a link error: the linker is the registry.
#ifdef WEFT_CUDA
#define WEFT_CUDA_CALL(...) cuda::__VA_ARGS__
#else
#define WEFT_CUDA_CALL(...) throw ::weft::Error(::weft::Exit::internal, "this build has no CUDA kernels")
#endif
#define ON_DEVICE(device, ...)                                       \
  do switch (device) {                                               \
      case ::weft::Device::cpu: cpu::__VA_ARGS__; break;             \
      case ::weft::Device::cuda: WEFT_CUDA_CALL(__VA_ARGS__); break; \
      case ::weft::Device::meta: break;                              \
    }                                                                \
  while (0)
