#include "training/data/tokenize_corpus_shards.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "training/checkpoint/files.h"
#include "training/checkpoint/hash.h"

namespace weft {
namespace {

using json = nlohmann::ordered_json;

constexpr const char* format_name = "weft tokens";
constexpr int format_version = 1;
constexpr size_t manifest_limit = size_t{1} << 30;

}  // namespace

CorpusManifest read_corpus_manifest(const std::string& path) {
  const std::string content = read_text_file(path, manifest_limit);
  try {
    const json file = json::parse(content);
    if (file.at("format") != format_name || file.at("version") != format_version)
      throw Error(Exit::data, "is not a manifest of version 1", path, "choose another output folder");
    CorpusManifest m;
    const json& tokenizer = file.at("tokenizer");
    m.plan = {.name = file.at("name"),
              .tokenizer_name = tokenizer.at("name"),
              .tokenizer_hash = tokenizer.at("hash"),
              .vocab_size = tokenizer.at("vocab_size"),
              .eos_id = tokenizer.at("eos_id"),
              .shard_tokens = file.at("shard_tokens"),
              .validation_tokens = file.at("validation_tokens"),
              .parse_special = file.at("parse_special"),
              .skip_bad_lines = file.at("skip_bad_lines"),
              .inputs = {}};
    for (const json& input : file.at("inputs"))
      m.plan.inputs.push_back({input.at("path"), input.at("size"), input.at("hash")});
    for (const json& s : file.at("shards")) {
      const json& end = s.at("end");
      m.shards.push_back({s.at("file"),
                          s.at("tokens"),
                          s.at("documents"),
                          s.at("skipped_lines"),
                          s.at("hash"),
                          {end.at("input"), end.at("unit"), end.at("tokens")},
                          {}});
      if (s.contains("text_bytes")) m.shards.back().text_bytes = s["text_bytes"].get<int64_t>();
    }
    m.is_complete = file.at("complete");
    return m;
  } catch (const json::exception& e) {
    throw Error(Exit::data, text("is not a manifest: ", e.what()), path, "choose another output folder");
  }
}

void write_corpus_manifest(const CorpusManifest& m, const std::string& path) {
  json inputs = json::array(), shards = json::array();
  for (const CorpusInput& input : m.plan.inputs)
    inputs.push_back({{"path", input.path}, {"size", input.size}, {"hash", input.hash}});
  int64_t tokens = 0, documents = 0, skipped_lines = 0, text_bytes = 0;
  bool text_is_counted = true;
  for (const CorpusShard& s : m.shards) {
    tokens += s.tokens;
    documents += s.documents;
    skipped_lines += s.skipped_lines;
    shards.push_back({{"file", s.file},
                      {"tokens", s.tokens},
                      {"documents", s.documents},
                      {"skipped_lines", s.skipped_lines},
                      {"hash", s.hash},
                      {"end", {{"input", s.end.input}, {"unit", s.end.unit}, {"tokens", s.end.tokens}}}});
    text_is_counted = text_is_counted && s.text_bytes;
    if (s.text_bytes) shards.back()["text_bytes"] = *s.text_bytes;
    text_bytes += s.text_bytes.value_or(0);
  }
  json file = {{"format", format_name},
               {"version", format_version},
               {"name", m.plan.name},
               {"tokenizer",
                {{"name", m.plan.tokenizer_name},
                 {"hash", m.plan.tokenizer_hash},
                 {"vocab_size", m.plan.vocab_size},
                 {"eos_id", m.plan.eos_id}}},
               {"dtype", m.plan.token_bytes() == 4 ? "uint32" : "uint16"},
               {"shard_tokens", m.plan.shard_tokens},
               {"validation_tokens", m.plan.validation_tokens},
               {"parse_special", m.plan.parse_special},
               {"skip_bad_lines", m.plan.skip_bad_lines},
               {"complete", m.is_complete},
               {"tokens", tokens},
               {"documents", documents},
               {"skipped_lines", skipped_lines},
               {"shards", shards},
               {"inputs", inputs}};
  if (text_is_counted) file["text_bytes"] = text_bytes;
  write_file_atomically(path, file.dump(2, ' ', false, json::error_handler_t::replace) + "\n");
}

ShardBuffer::ShardBuffer(int64_t capacity, int token_bytes)
    : capacity_(capacity), token_bytes_(token_bytes) {}

int64_t ShardBuffer::append(const int32_t* tokens, int64_t count) {
  count = std::min(count, capacity_ - tokens_);
  bytes_.resize(static_cast<size_t>((tokens_ + count) * token_bytes_));
  char* out = bytes_.data() + tokens_ * token_bytes_;
  for (int64_t i = 0; i < count; ++i, out += token_bytes_)
    std::memcpy(out, &tokens[i], static_cast<size_t>(token_bytes_));  // little-endian
  tokens_ += count;
  return count;
}

std::string ShardBuffer::write(const std::string& path) const {
  std::array<int32_t, 256> header{};
  header[0] = token_bytes_ == 4 ? 20240801 : 20240520;
  header[1] = token_bytes_ == 4 ? 7 : 1;
  header[2] = static_cast<int32_t>(tokens_);
  Hash128 hash;
  hash.add(header.data(), sizeof header);
  hash.add(bytes_.data(), bytes_.size());
  AtomicFile file(path);
  file.write(header.data(), sizeof header);
  file.write(bytes_.data(), bytes_.size());
  file.commit();
  return hash.hex();
}

}  // namespace weft
