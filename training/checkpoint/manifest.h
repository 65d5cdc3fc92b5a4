#pragma once
// MANIFEST: what makes a folder of shards a checkpoint. JSON, followed by one line "xxh3-128 HASH" over all
// bytes before it, so that no change goes unseen.

#include <cstdint>
#include <string>
#include <vector>

namespace weft::ckpt {

constexpr int64_t manifest_format = 1;
constexpr size_t longest_manifest = size_t{256} << 20;

struct FileDigest {
  std::string name;
  int64_t bytes = 0;
  std::string xxh3;  // of the whole file
};

struct Manifest {
  std::string run;  // id of the run, new_run_id()
  int64_t step = 0;
  int64_t world = 1;
  std::vector<FileDigest> files;  // file i was written by rank i
  std::string recipe_hash, tokenizer_hash, order_hash, weights_hash;
  std::string extra = "{}";  // JSON text: whatever else the run has to remember
};

std::string new_run_id();  // 32 random hexadecimal digits

std::string manifest_text(const Manifest& manifest);

// Errors: Exit::data if damaged; Exit::no_checkpoint if whole, but of another format version.
Manifest parse_manifest(const std::string& content, const std::string& path);

}  // namespace weft::ckpt
