#pragma once
// Files of every format, written by the tests themselves, and a tokenizer of bytes.

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "autograd/check.h"
#include "training/data/token_source.h"
#include "training/data/tokenizer.h"

namespace weft {

// A folder that goes away with the test.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "weft_data_XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

inline std::string write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

constexpr int32_t byte_end = 256;

class ByteTokens : public Tokenizer {
 public:
  std::string name() const override { return "test"; }
  int32_t vocab_size() const override { return 257; }
  int32_t eos_id() const override { return byte_end; }
  std::string hash() const override { return ""; }
  void encode_to(std::string_view text, SpecialText, std::vector<int32_t>& out) const override {
    for (const char c : text) out.push_back(static_cast<uint8_t>(c));
  }
  bool may_cut_at_newlines() const override { return true; }
  std::string_view token_bytes(int32_t id) const override {
    static const std::string bytes = [] {
      std::string all;
      for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
      return all;
    }();
    return id == byte_end ? "<|endoftext|>" : std::string_view(bytes).substr(static_cast<size_t>(id), 1);
  }
  void save(const std::string&) const override {}
};

inline SourceOptions byte_options() {
  static const ByteTokens tokenizer;
  return {&tokenizer, tokenizer.vocab_size(), tokenizer.eos_id(), false};
}

// Tokens of a whole vocabulary, without an end token unless given.
inline SourceOptions token_options(int64_t vocab, int32_t eos = -1) { return {nullptr, vocab, eos, false}; }

using Documents = std::vector<std::vector<int32_t>>;

inline Documents documents_of(const TokenSource& source) {
  Documents documents;
  for (int64_t d = 0; d < source.documents(); ++d) {
    documents.emplace_back(source.length(d));
    source.read(d, 0, source.length(d), documents.back().data());
  }
  return documents;
}

inline Documents documents_of(const std::string& path, const SourceOptions& options) {
  return documents_of(*open_source(path, options));
}

// The documents as text, without their end tokens.
inline std::vector<std::string> texts_of(const std::string& path) {
  std::vector<std::string> texts;
  for (const auto& document : documents_of(path, byte_options())) {
    texts.emplace_back();
    for (const int32_t token : document)
      if (token != byte_end) texts.back() += static_cast<char>(token);
  }
  return texts;
}

// Runs `work` and returns the Error it must throw.
template <class Work>
Error error_of(Work work) {
  try {
    work();
  } catch (const Error& error) {
    return error;
  }
  return Error(Exit::ok, "nothing was thrown");
}

std::string llmc_file(const std::vector<uint32_t>& tokens, bool wide, int32_t version = -1);
// The .idx of documents of u16 (code 8) or i32 (code 4) tokens, each document one sequence.
std::string megatron_index(const std::vector<int32_t>& lengths, int code = 8);
void write_hdf5(const std::string& path, const std::vector<int64_t>& tokens,
                const std::vector<int64_t>* offsets, int64_t chunk = 0);
std::string gzipped(const std::string& text);
std::string zstandard(const std::string& text);

}  // namespace weft
