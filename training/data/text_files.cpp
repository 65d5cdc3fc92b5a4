// Documents in text files: plain text and jsonl, tokenised when opened.

#include <nlohmann/json.hpp>
#include <utility>

#include "autograd/check.h"
#include "training/data/formats.h"
#include "training/data/text_stream.h"
#include "training/data/tokenizer.h"

namespace weft {

namespace {

class MemoryTokens : public TokenArray {
 public:
  explicit MemoryTokens(std::string path) : path_(std::move(path)) {}

  int64_t size() const override { return static_cast<int64_t>(tokens.size()); }
  std::string where(int64_t index) const override { return text(path_, ": token ", index); }
  void read(int64_t begin, std::span<int64_t> out) const override {
    for (size_t i = 0; i < out.size(); ++i) out[i] = tokens[static_cast<size_t>(begin) + i];
  }

  std::vector<int32_t> tokens;

 private:
  std::string path_;
};

// Collects documents of text into a source.
class TextSource {
 public:
  TextSource(const std::string& path, const SourceOptions& options) : path_(path), options_(options) {
    if (options.tokenizer == nullptr)
      throw Error(Exit::recipe, "is text, and no tokenizer is given", path,
                  "set data.tokenizer, or tokenize the file first");
    tokens_ = std::make_unique<MemoryTokens>(path);
  }

  void add(std::string_view document) {
    const int64_t begin = tokens_->size();
    options_.tokenizer->encode_to(document, SpecialText::plain, tokens_->tokens);
    if (options_.eos >= 0) tokens_->tokens.push_back(options_.eos);
    ranges_.push_back({begin, tokens_->size() - begin});
  }
  SourcePtr finish(std::string format, int64_t bad = 0) {
    return std::make_unique<TokenSource>(path_, std::move(format), std::move(tokens_), std::move(ranges_),
                                         options_, bad);
  }

 private:
  std::string path_;
  SourceOptions options_;
  std::unique_ptr<MemoryTokens> tokens_;
  std::vector<DocumentRange> ranges_;
};

}  // namespace

SourcePtr open_plain_text(const std::string& path, const SourceOptions& options) {
  TextSource source(path, options);
  TextStream stream(path);
  std::string line, document;
  int64_t blank = 0;
  const auto close = [&] {
    if (!document.empty()) source.add(document);
    document.clear();
  };
  while (stream.line(line)) {
    if (line.find('\0') != std::string::npos)
      throw Error(Exit::data, "is neither text nor any known token format: it holds a zero byte",
                  stream.where());
    if (line == "<|endoftext|>") {
      close();
    } else if (line.empty()) {
      ++blank;
      continue;
    } else {
      if (blank >= 2) close();
      if (!document.empty()) document.append(static_cast<size_t>(blank) + 1, '\n');
      document += line;
    }
    blank = 0;
  }
  close();
  return source.finish("text");
}

SourcePtr open_jsonl(const std::string& path, const SourceOptions& options) {
  TextSource source(path, options);
  TextStream stream(path);
  std::string line;
  int64_t bad = 0;
  while (stream.line(line)) {
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    const auto object = nlohmann::json::parse(line, nullptr, false);  // discarded where it is not JSON
    const auto found = object.is_object() ? object.find("text") : object.end();
    if (object.is_object() && found != object.end() && found->is_string()) {
      source.add(found->get_ref<const std::string&>());
    } else if (options.skip_bad) {
      ++bad;
    } else {
      throw Error(Exit::data, object.is_discarded() ? "is not valid JSON" : "has no string `text`",
                  stream.where(), "each line is one object such as {\"text\": \"...\"}");
    }
  }
  return source.finish("jsonl", bad);
}

}  // namespace weft
