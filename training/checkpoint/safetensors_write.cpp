#include <algorithm>
#include <cstdio>
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

std::string numbered(const std::string& stem, size_t index, size_t count) {
  char number[32];
  std::snprintf(number, sizeof number, "-%05zu-of-%05zu", index, count);
  return stem + number + ".safetensors";
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

std::vector<std::string> write_safetensors_sharded(const std::string& folder, const std::string& stem,
                                                   const std::vector<NamedArray>& arrays,
                                                   const StringMap& metadata, int64_t limit) {
  std::vector<std::vector<NamedArray>> shards(1);
  int64_t total = 0, filled = 0;
  for (const NamedArray& array : arrays) {
    if (filled > 0 && filled + array.bytes() > limit) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(array);
    filled += array.bytes();
    total += array.bytes();
  }
  if (shards.size() == 1) {
    write_safetensors(folder + "/" + stem + ".safetensors", arrays, metadata);
    return {stem + ".safetensors"};
  }
  std::vector<std::string> files;
  Json map = Json::object();
  for (const auto& shard : shards) {
    files.push_back(numbered(stem, files.size() + 1, shards.size()));
    write_safetensors(folder + "/" + files.back(), shard, metadata);
    for (const NamedArray& array : shard) map[array.name] = files.back();
  }
  const Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  files.push_back(stem + ".safetensors.index.json");
  write_file_atomically(folder + "/" + files.back(), index.dump(2) + "\n");
  return files;
}

}  // namespace weft
