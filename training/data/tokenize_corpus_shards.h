#pragma once
// The output folder of tokenize_corpus: shards in llm.c's format, and manifest.json, which says what they
// were made from and how far the work has come.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace weft {

// How far into the inputs a run has come: `tokens` tokens of unit `unit` of file `input`, and all before it.
struct CorpusPosition {
  int64_t input = 0, unit = 0, tokens = 0;
  auto operator<=>(const CorpusPosition&) const =
      default;  // NOLINT(modernize-use-nullptr): clang-tidy 14 is wrong
};

struct CorpusShard {
  std::string file;
  int64_t tokens = 0;
  int64_t documents = 0;      // that begin in it
  int64_t skipped_lines = 0;  // met while it was written
  std::string hash;           // XXH3-128 of the file
  CorpusPosition end;
  // Of the documents, or parts of them, that begin in it; none in manifests of before it was kept.
  std::optional<int64_t> text_bytes = 0;
};

struct CorpusInput {
  std::string path;
  int64_t size = 0;
  std::string hash;  // XXH3-128 of the file
  bool operator==(const CorpusInput&) const = default;
};

// Everything that decides the content of the shards.
struct CorpusPlan {
  std::string name, tokenizer_name, tokenizer_hash;
  int64_t vocab_size = 0, eos_id = 0, shard_tokens = 0, validation_tokens = 0;
  bool parse_special = false, skip_bad_lines = false;
  std::vector<CorpusInput> inputs;
  bool operator==(const CorpusPlan&) const = default;

  int token_bytes() const { return vocab_size > 65536 ? 4 : 2; }
};

struct CorpusManifest {
  CorpusPlan plan;
  std::vector<CorpusShard> shards;
  bool is_complete = false;
};

// Errors: Exit::data when the file is there and is not a manifest.
CorpusManifest read_corpus_manifest(const std::string& path);
void write_corpus_manifest(const CorpusManifest& manifest, const std::string& path);

// Collects the tokens of one shard in memory and writes them in one go: llm.c's header of 256 x i32, then the
// tokens.
class ShardBuffer {
 public:
  ShardBuffer(int64_t capacity, int token_bytes);
  // Takes what fits of `count` tokens and says how many.
  int64_t append(const int32_t* tokens, int64_t count);
  bool is_full() const { return tokens_ == capacity_; }
  int64_t tokens() const { return tokens_; }
  // Under its name at once, complete and on the disk. Returns the hash of the file.
  std::string write(const std::string& path) const;

 private:
  int64_t capacity_, tokens_ = 0;
  int token_bytes_;
  std::vector<char> bytes_;
};

}  // namespace weft
