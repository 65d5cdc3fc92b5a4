#pragma once
// The bytes of a text file, plain or compressed with gzip or zstd (told apart by magic), front to back.

#include <cstdint>
#include <memory>
#include <string>

namespace weft {

class TextStream {
 public:
  // Errors: Exit::data when the file is missing, or is called .gz or .zst and is neither.
  explicit TextStream(const std::string& path);
  ~TextStream();

  // The next line without its line end (\n or \r\n), or false at the end. Errors: Exit::data when the
  // compressed data is damaged or cut off, Exit::io when the disk fails.
  bool line(std::string& out);

  int64_t number() const { return number_; }  // of the line last handed out, from 1
  int64_t offset() const { return offset_; }  // of its first byte, in the uncompressed text
  std::string where() const;                  // "corpus.jsonl.zst:12 (byte 3456)"

  class Decoder;  // one of plain, gzip, zstd

 private:
  bool fill();

  std::string path_;
  std::unique_ptr<Decoder> decoder_;
  std::string buffer_;
  size_t at_ = 0;
  int64_t number_ = 0, offset_ = 0, next_offset_ = 0;
};

}  // namespace weft
