#include "training/data/tokenize_corpus_input.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "autograd/check.h"
#include "training/data/text_stream.h"

namespace weft {
namespace {

bool is_json_lines(std::string_view path) {
  for (std::string_view compressed : {".gz", ".zst"})
    if (path.ends_with(compressed)) path.remove_suffix(compressed.size());
  return path.ends_with(".jsonl") || path.ends_with(".ndjson");
}

bool is_ascii_alphanumeric(char c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

}  // namespace

UnitReader::UnitReader(std::vector<std::string> inputs, bool may_cut, int32_t first_input)
    : inputs_(std::move(inputs)), may_cut_(may_cut), input_(first_input) {}
UnitReader::~UnitReader() = default;

bool UnitReader::next(std::vector<TextUnit>& batch, size_t bytes) {
  batch.clear();
  TextUnit unit;
  for (size_t filled = 0; filled < bytes && next_unit(unit);) {
    filled += unit.text.size();
    batch.push_back(std::exchange(unit, {}));
  }
  return !batch.empty();
}

bool UnitReader::next_unit(TextUnit& unit) {
  for (; input_ < static_cast<int32_t>(inputs_.size()); ++input_, stream_.reset()) {
    if (!stream_) {
      stream_ = std::make_unique<TextStream>(inputs_[input_]);
      index_ = 0;
    }
    unit.is_json = is_json_lines(inputs_[input_]);
    if (!(unit.is_json ? next_json_line(unit) : next_plain_part(unit))) continue;
    unit.input = input_;
    unit.index = index_++;
    unit.line = stream_->number();
    return true;
  }
  return false;
}

bool UnitReader::next_json_line(TextUnit& unit) {
  if (!stream_->line(unit.text)) return false;
  check_size(unit.text.size());
  return true;
}

bool UnitReader::next_plain_part(TextUnit& unit) {
  std::string line;
  while (stream_->line(line)) {
    if (line.find('\0') != line.npos)
      throw Error(Exit::data, "is not text: it holds a zero byte", stream_->where());
    const bool has_document = !document_.empty();
    if (line == "<|endoftext|>") {
      blank_ = 0;
      if (!has_document) continue;
      return hand_out(unit, {}, true), true;
    }
    if (line.empty()) {
      ++blank_;
      continue;
    }
    const size_t blank = std::exchange(blank_, 0);
    if (has_document && blank >= 2) return hand_out(unit, std::move(line), true), true;
    if (has_document && blank == 0 && may_cut_before(line)) {
      document_ += '\n';
      return hand_out(unit, std::move(line), false), true;
    }
    if (has_document) document_.append(blank + 1, '\n');
    document_ += line;
    check_size(document_.size());
  }
  if (document_.empty()) return false;
  return hand_out(unit, {}, true), true;
}

void UnitReader::hand_out(TextUnit& unit, std::string rest, bool rest_starts_document) {
  unit.text = std::exchange(document_, std::move(rest));
  unit.starts_document = std::exchange(starts_document_, rest_starts_document);
}

void UnitReader::check_size(size_t bytes) const {
  if (bytes > document_bytes)
    throw Error(Exit::data, text("has a document of more than ", document_bytes >> 20, " MiB"),
                stream_->where(), "make more documents of it, one a line in a .jsonl file");
}

bool UnitReader::may_cut_before(const std::string& line) const {
  return may_cut_ && document_.size() >= cut_bytes && is_ascii_alphanumeric(document_.back()) &&
         is_ascii_alphanumeric(line[0]);
}

std::optional<std::string> json_text(const TextUnit& unit, const std::string& path, bool skip_bad,
                                     int64_t& bad) {
  if (unit.text.find_first_not_of(" \t") == std::string::npos) return {};
  auto object = nlohmann::json::parse(unit.text, nullptr, false);  // discarded where it is not JSON
  if (object.is_object() && object.contains("text") && object["text"].is_string())
    return std::move(object["text"].get_ref<std::string&>());
  if (!skip_bad)
    throw Error(Exit::data, object.is_discarded() ? "is not valid JSON" : "has no string `text`",
                text(path, ':', unit.line), "each line is one object such as {\"text\": \"...\"}");
  ++bad;
  return {};
}

}  // namespace weft
