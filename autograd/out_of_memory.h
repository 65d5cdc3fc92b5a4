#pragma once
// What a Buffer throws where the device has not enough memory.

#include "autograd/check.h"
#include "autograd/memory.h"

namespace weft {

// The line names the scope that held most.
struct OutOfMemory : Error {
  OutOfMemory(int64_t asked, const MemoryReport& report);
  int64_t in_use;  // bytes in use at that moment
};

}  // namespace weft
