#pragma once
// safetensors files: u64 header length, a JSON header, then the arrays, row-major and little-endian, one
// after the other without a hole. Format: https://github.com/huggingface/safetensors (README, "Format").
//
// The reader trusts nothing: a header that lies in any way (length, offsets, overlap, hole, product that
// overflows, duplicate name, unknown element type, trailing bytes, deep nesting) is Error{Exit::data} naming
// file and tensor, and nothing larger than the file is ever allocated.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "training/checkpoint/array.h"
#include "training/checkpoint/files.h"

namespace weft {

using StringMap = std::map<std::string, std::string>;

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // as in the file: F32, BF16, I64, F8_E4M3, ...
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes, from the end of the header

  int64_t count() const { return count_of(shape); }
};

// Checks all of `header` against the `data_bytes` bytes that follow it; the entries come in file order.
struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;
  StringMap metadata;
};
SafetensorsHeader parse_safetensors_header(std::string_view header, uint64_t data_bytes,
                                           const std::string& file);

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path);

  const std::vector<SafetensorsEntry>& entries() const { return header_.entries; }
  const StringMap& metadata() const { return header_.metadata; }
  const SafetensorsEntry* find(const std::string& name) const;            // null: not in the file
  const SafetensorsEntry& at(const std::string& name) const;              // Exit::data: not in the file
  std::span<const std::byte> bytes(const SafetensorsEntry& entry) const;  // as stored, perhaps not aligned

  // Converted: any float or integer type to a float type, integers to i32. Exit::data where the values do not
  // fit in i32, or where the stored type has no conversion (8-bit and smaller floats, complex numbers).
  OwnedArray read(const std::string& name, Dtype to) const;
  // I32 or I64 as they are. Exit::data: of another type.
  std::vector<int64_t> integers(const SafetensorsEntry& entry) const;

 private:
  std::string path_;
  MappedFile map_;
  SafetensorsHeader header_;
  size_t data_at_ = 0;
};

// Appears under its name whole or not at all. Largest elements first, so that every array is aligned.
// Errors: Exit::cannot_create, Exit::io.
void write_safetensors(const std::string& path, const std::vector<NamedArray>& arrays,
                       const StringMap& metadata);

}  // namespace weft
