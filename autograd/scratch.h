#pragma once
// Temporary vectors for CPU kernels: the memory of one is kept for the next of its size.

#include <new>
#include <vector>

#include "autograd/memory.h"

namespace weft {

template <class T>
struct ScratchAllocator {
  using value_type = T;

  ScratchAllocator() = default;
  template <class U>
  ScratchAllocator(const ScratchAllocator<U>&) {}

  T* allocate(size_t n) {
    void* data = allocator_of(Device::cpu).allocate(static_cast<int64_t>(n * sizeof(T)));
    if (data == nullptr) throw std::bad_alloc();
    return static_cast<T*>(data);
  }
  void deallocate(T* data, size_t n) {
    allocator_of(Device::cpu).release(data, static_cast<int64_t>(n * sizeof(T)));
  }
  bool operator==(const ScratchAllocator&) const { return true; }
};

template <class T>
using Scratch = std::vector<T, ScratchAllocator<T>>;

}  // namespace weft
