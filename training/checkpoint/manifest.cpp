#include "training/checkpoint/manifest.h"

#include <nlohmann/json.hpp>
#include <random>

#include "autograd/check.h"
#include "training/checkpoint/hash.h"

namespace weft::ckpt {
namespace {

using Json = nlohmann::ordered_json;
const std::string hash_mark = "\nxxh3-128 ";

[[noreturn]] void damaged(const std::string& what, const std::string& path) {
  throw Error(Exit::data, "manifest: " + what, path, "");
}

}  // namespace

std::string new_run_id() {
  std::random_device random;
  std::string id;
  for (int i = 0; i < 32; ++i) id += "0123456789abcdef"[random() & 15u];
  return id;
}

std::string manifest_text(const Manifest& manifest) {
  Json files = Json::array();
  for (const FileDigest& file : manifest.files)
    files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"xxh3", file.xxh3}});
  const Json extra = Json::parse(manifest.extra, nullptr, false);
  CHECK(!extra.is_discarded(), "checkpoint: the extra state is no JSON: ", manifest.extra);
  const Json json = {{"format", manifest_format},
                     {"run", manifest.run},
                     {"step", manifest.step},
                     {"world", manifest.world},
                     {"files", files},
                     {"recipe_hash", manifest.recipe_hash},
                     {"tokenizer_hash", manifest.tokenizer_hash},
                     {"order_hash", manifest.order_hash},
                     {"weights_hash", manifest.weights_hash},
                     {"extra", extra}};
  const std::string body = json.dump(1);
  return body + hash_mark + hash128(body.data(), body.size()) + "\n";
}

Manifest parse_manifest(const std::string& content, const std::string& path) {
  const size_t mark = content.rfind(hash_mark);
  if (mark == std::string::npos) damaged("has no hash line; truncated?", path);
  const std::string body = content.substr(0, mark);
  if (content.substr(mark) != hash_mark + hash128(body.data(), body.size()) + "\n")
    damaged("does not match its own hash", path);
  const Json json = Json::parse(body, nullptr, false);
  if (!json.is_object() || !json.contains("format") || !json["format"].is_number_integer())
    damaged("is not a JSON object with a format", path);
  if (const auto format = json["format"].get<int64_t>(); format != manifest_format)
    throw Error(
        Exit::no_checkpoint,
        text("checkpoint format ", format, " is ", format > manifest_format ? "newer" : "older", " than the ",
             manifest_format, " that this program reads"),
        path, format > manifest_format ? "use a newer weft" : "load and save it with the weft that wrote it");
  try {
    Manifest manifest;
    json.at("run").get_to(manifest.run);
    json.at("step").get_to(manifest.step);
    json.at("world").get_to(manifest.world);
    for (const Json& file : json.at("files"))
      manifest.files.push_back({file.at("name"), file.at("bytes"), file.at("xxh3")});
    json.at("recipe_hash").get_to(manifest.recipe_hash);
    json.at("tokenizer_hash").get_to(manifest.tokenizer_hash);
    json.at("order_hash").get_to(manifest.order_hash);
    json.at("weights_hash").get_to(manifest.weights_hash);
    manifest.extra = json.at("extra").dump();
    return manifest;
  } catch (const Json::exception& e) {
    damaged(e.what(), path);
  }
}

}  // namespace weft::ckpt
