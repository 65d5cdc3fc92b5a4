#pragma once
// memcpy for messages, which may be empty, or already where they belong.

#include <cstdint>
#include <cstring>

namespace weft {

inline void copy_bytes(void* to, const void* from, int64_t bytes) {
  if (to != from && bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

}  // namespace weft
