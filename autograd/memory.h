#pragma once
// Memory: an allocator a device, and a ledger that knows under which named scope each byte was taken. The
// start-up table, the peak and the out-of-memory message all come from the ledger.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "autograd/device.h"

namespace weft {

class Allocator {
 public:
  virtual ~Allocator() = default;
  virtual void* allocate(int64_t bytes) = 0;
  virtual void release(void* pointer, int64_t bytes) = 0;
  virtual void fill(void* pointer, int value, int64_t bytes) = 0;
};

Allocator& allocator_of(Device device);

// Everything this thread allocates while a scope lives is booked under "outer/inner". Names must outlive the
// scope.
class MemoryScope {
 public:
  explicit MemoryScope(const std::string& name);
  ~MemoryScope();
  MemoryScope(const MemoryScope&) = delete;
  MemoryScope& operator=(const MemoryScope&) = delete;

 private:
  int previous_;
};

// What is in use, and what was at the highest moment since reset_peak(). Bytes, all threads together.
struct MemoryReport {
  int64_t bytes = 0;
  int64_t peak_bytes = 0;
  std::vector<std::pair<std::string, int64_t>> peak_by_scope;  // at the peak, largest first
};
MemoryReport memory_report(Device device);
void reset_peak(Device device);

// A block of memory, booked under the scope in force. With POISON=1 in the environment fresh memory is filled
// with 0xff, which reads as NaN in every float type, so that a read of something never written shows.
class Buffer {
 public:
  Buffer(Device device, int64_t bytes);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  Device device() const { return device_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_;
  int scope_;
  Device device_;
};

}  // namespace weft
