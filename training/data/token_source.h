#pragma once
// One file of training data as documents of token numbers, whatever its format. The format is found by magic:
//
//   llm.c .bin      256 x i32 header {20240520, 1, n} and u16 tokens, or {20240801, 7, n} and u32 tokens
//   nanoGPT .bin    u16 tokens without a header (any other .bin without an .idx; u32 ones are refused)
//   Megatron        .idx "MMIDIDX" with its .bin beside it; name the .idx, the .bin or their prefix
//   HDF5            integer dataset `tokens` (N), optional `offsets` (documents + 1) rising from 0 to N
//   .jsonl .ndjson  one object a line with a string `text`; one line is one document
//   anything else   plain text: a line that is only <|endoftext|>, or two or more blank lines in a row,
//                   ends a document; a file with neither is one document
//
// The text formats may be compressed with gzip or zstd. They are tokenised when opened and the tokens kept in
// memory; lines end in \n or \r\n, blank lines around a document do not belong to it, and each document gets
// the end token. Where a format does not record documents (.bin, HDF5 without offsets) each end token closes
// one, which is right whether the writer put it before or after a document. A document without tokens, or of
// the end token alone, is skipped and counted.
//
// A byte order mark at the start of a text is left out.
//
// Errors: a file that breaks its format is Exit::data, naming file and offset; so are u16 tokens of a
// tokenizer that has more than 65536.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace weft {

class Tokenizer;

struct SourceOptions {
  const Tokenizer* tokenizer = nullptr;  // needed by the text formats only
  int64_t vocab_size = 0;                // every token must lie below it
  int32_t eos = -1;  // the end token; -1: none, so files without document marks are one document
  // Leave out, and count, documents with a token outside the vocabulary and lines that are not JSON, instead
  // of stopping. The whole file is read when it is opened, so that every rank leaves out the same ones.
  bool skip_bad = false;
};

// A flat array of tokens somewhere: in a file, in an HDF5 dataset, in memory. Reads are safe from several
// threads.
class TokenArray {
 public:
  virtual ~TokenArray() = default;
  virtual int64_t size() const = 0;
  virtual void read(int64_t begin, std::span<int64_t> out) const = 0;  // as stored, not yet checked
  virtual std::string where(int64_t index) const = 0;                  // file and offset of one token
};

struct DocumentRange {
  int64_t begin = 0, length = 0;  // in tokens of the array
};

class TokenSource {
 public:
  // ranges: the documents in order, inside the array. bad: documents already left out by the reader.
  TokenSource(std::string path, std::string format, std::unique_ptr<TokenArray> array,
              std::vector<DocumentRange> ranges, const SourceOptions& options, int64_t bad = 0);

  const std::string& path() const { return path_; }
  const std::string& format() const { return format_; }  // "llm.c u16", "jsonl", ...
  int64_t documents() const { return static_cast<int64_t>(documents_.size()); }
  int64_t length(int64_t document) const { return documents_[document].length; }  // >= 1
  int64_t tokens() const { return tokens_; }                                      // sum of the lengths
  int64_t empty_documents() const { return empty_; }
  int64_t bad_documents() const { return bad_; }

  // Copies tokens [begin, end) of a document to out; safe from several threads.
  // Errors: Exit::data on a token outside the vocabulary, or a file that changed since it was opened.
  void read(int64_t document, int64_t begin, int64_t end, int32_t* out) const;

  // XXH3 of tokens [begin, end) of a document as little-endian i32: the same in every file and format.
  uint64_t hash(int64_t document, int64_t begin, int64_t end) const;

 private:
  bool is_valid(const DocumentRange& range) const;
  void read_checked(int64_t begin, int64_t end, int32_t* out) const;

  std::string path_, format_;
  std::unique_ptr<TokenArray> array_;
  std::vector<DocumentRange> documents_;
  int64_t vocab_size_;
  int64_t tokens_ = 0, empty_ = 0, bad_ = 0;
};

// Opens a file of any format above.
std::unique_ptr<TokenSource> open_source(const std::string& path, const SourceOptions& options);

}  // namespace weft
