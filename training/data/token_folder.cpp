#include "training/data/token_folder.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "autograd/check.h"
#include "training/data/tokenizer.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Reads with f what a manifest says; false where there is none of ours.
template <class F>
bool read_manifest(const fs::path& folder, F f) {
  const fs::path path = folder / "manifest.json";
  std::ifstream file(path);
  if (!file) return false;
  const json manifest = json::parse(file, nullptr, false);
  if (!manifest.is_object() || manifest.value("format", json()) != "weft tokens") return false;
  try {
    f(manifest);
  } catch (const json::exception& e) {
    throw Error(Exit::data, text("is a damaged manifest: ", e.what()), path.string(),
                "run weft tokenize into another folder");
  }
  return true;
}

}  // namespace

std::optional<std::vector<std::string>> training_shards(const std::string& folder) {
  std::vector<std::string> shards;
  const bool found = read_manifest(folder, [&](const json& manifest) {
    if (!manifest.at("complete").get<bool>())
      throw Error(Exit::data, "holds a corpus that is not finished", folder,
                  "run the same weft tokenize again: it continues where it was stopped");
    bool validation = manifest.at("validation_tokens").get<int64_t>() > 0;  // they fill the first shard
    for (const json& shard : manifest.at("shards"))
      if (!std::exchange(validation, false))
        shards.push_back(fs::path(folder) / shard.at("file").get<std::string>());
  });
  if (!found) return {};
  return shards;
}

void require_same_tokenizer(const std::string& path, const Tokenizer& tokenizer) {
  const fs::path file(path);
  read_manifest(file.parent_path(), [&](const json& manifest) {
    for (const json& shard : manifest.at("shards"))
      if (shard.at("file") == file.filename().string() &&
          manifest.at("tokenizer").at("hash") != tokenizer.hash())
        throw Error(
            Exit::data,
            text("was made with the tokenizer ", manifest.at("tokenizer").at("name").get<std::string>(),
                 ", not with ", tokenizer.name()),
            path, "name that tokenizer in data.tokenizer");
  });
}

}  // namespace weft
