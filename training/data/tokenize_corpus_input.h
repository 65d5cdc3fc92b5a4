#pragma once
// Text files as a stream of pieces small enough to be tokenised one by one: documents, and parts of long
// ones.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace weft {

class TextStream;

struct TextUnit {
  std::string text;   // of a document or a part of one; with json, the line it stands in
  int32_t input = 0;  // which file
  int64_t index = 0;  // of this unit in its file, from 0; the same in every run
  int64_t line = 0;   // where it ends in the file, from 1
  bool starts_document = true;
  bool is_json = false;
};

// Reads .jsonl and .ndjson files line by line, and others as plain text by the rules of token_source.h. Files
// may be compressed with gzip or zstd.
class UnitReader {
 public:
  // may_cut: a plain document longer than cut_bytes is cut where Tokenizer::may_cut_at_newlines allows it.
  UnitReader(std::vector<std::string> inputs, bool may_cut, int32_t first_input = 0);
  ~UnitReader();

  // Fills batch with the next units, about `bytes` of text; false at the end of the last file.
  // Errors: Exit::data for a damaged or binary file, and for a document longer than document_bytes.
  bool next(std::vector<TextUnit>& batch, size_t bytes);

  static constexpr size_t cut_bytes = size_t{1} << 20;
  static constexpr size_t document_bytes = size_t{1} << 28;

 private:
  bool next_unit(TextUnit& unit);
  bool next_json_line(TextUnit& unit);
  bool next_plain_part(TextUnit& unit);
  // Takes what document_ holds for the unit and puts `rest` there.
  void hand_out(TextUnit& unit, std::string rest, bool rest_starts_document);
  void check_size(size_t bytes) const;
  bool may_cut_before(const std::string& line) const;

  std::vector<std::string> inputs_;
  bool may_cut_;
  int32_t input_;
  std::unique_ptr<TextStream> stream_;
  int64_t index_ = 0;
  // Plain text: what the current document or part has so far, and the blank lines after it.
  std::string document_;
  bool starts_document_ = true;
  size_t blank_ = 0;
};

// The text of a json line; nothing when it is blank, or bad and skip_bad is set (then ++bad).
// Errors: Exit::data naming file and line.
std::optional<std::string> json_text(const TextUnit& unit, const std::string& path, bool skip_bad,
                                     int64_t& bad);

}  // namespace weft
