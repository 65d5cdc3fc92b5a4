#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "training/checkpoint/safetensors.h"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;

const char* stored_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64: return "F64";
    case Dtype::f32: return "F32";
    case Dtype::bf16: return "BF16";
    case Dtype::i32: return "I32";
  }
  return "";
}

}  // namespace

void write_safetensors(const std::string& path, const std::vector<NamedArray>& arrays,
                       const StringMap& metadata) {
  std::vector<NamedArray> sorted = arrays;
  std::sort(sorted.begin(), sorted.end(), [](const NamedArray& a, const NamedArray& b) {
    return std::make_pair(-size_of(a.dtype), a.name) < std::make_pair(-size_of(b.dtype), b.name);
  });

  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::set<std::string> names;
  int64_t at = 0;
  for (const NamedArray& array : sorted) {
    CHECK(names.insert(array.name).second && array.name != "__metadata__", "write_safetensors: the name ",
          array.name, " is taken");
    header[array.name] = {{"dtype", stored_name(array.dtype)},
                          {"shape", array.shape},
                          {"data_offsets", {at, at + array.bytes()}}};
    at += array.bytes();
  }
  std::string json = header.dump();
  json.resize((json.size() + 7) / 8 * 8, ' ');

  AtomicFile file(path);
  const uint64_t length = json.size();
  file.write(&length, sizeof(length));
  file.write(json.data(), json.size());
  for (const NamedArray& array : sorted) file.write(array.data, static_cast<size_t>(array.bytes()));
  file.commit();
}

}  // namespace weft
