#pragma once
// XXH3, 128 bits, written as 32 hexadecimal digits (the canonical big-endian form that xxhsum -H2 prints).

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "training/checkpoint/array.h"

namespace weft {

class Hash128 {
 public:
  Hash128();
  ~Hash128();
  Hash128(const Hash128&) = delete;
  Hash128& operator=(const Hash128&) = delete;

  void add(const void* data, size_t bytes);
  void add(const std::string& text) { add(text.data(), text.size()); }
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string hash128(const void* data, size_t bytes);

// Of a whole file, read with large sequential reads; calls `pulse` after each. Errors: Exit::io.
std::string hash_file(const std::string& path, const std::function<void()>& pulse = {});

// The fingerprint of a model: over the arrays sorted by name, each as its name, its shape in 64-bit
// integers, its data in little-endian f32. Independent of world size, layout and order. All must be f32.
std::string weights_hash(std::vector<NamedArray> masters);

// The same where no process holds all the arrays: begin() each in name order, then feed its data.
class WeightsHash {
 public:
  void begin(const std::string& name, const std::vector<int64_t>& shape);
  void add(const float* data, int64_t count);
  std::string hex() const { return hash_.hex(); }

 private:
  Hash128 hash_;
  std::string last_;
  bool any_ = false;
};

}  // namespace weft
