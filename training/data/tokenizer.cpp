#include "training/data/tokenizer.h"

#include <array>
#include <numeric>
#include <utility>

#include "autograd/check.h"
#include "training/data/bpe.h"
#include "training/data/tokenizer_json.h"
#include "training/data/tokenizer_utf8.h"

namespace weft {
namespace {

constexpr int32_t byte_eos = 256;

class ByteTokenizer : public Tokenizer {
 public:
  std::string name() const override { return "byte"; }
  int32_t vocab_size() const override { return byte_eos + 1; }
  int32_t eos_id() const override { return byte_eos; }
  std::string hash() const override { return definition_hash(definition()); }
  void encode_to(std::string_view text, SpecialText special, std::vector<int32_t>& out) const override {
    while (!text.empty()) {
      size_t end = special == SpecialText::parse ? text.find(document_end) : text.npos;
      for (unsigned char c : text.substr(0, end)) out.push_back(c);
      if (end == text.npos) break;
      out.push_back(byte_eos);
      text.remove_prefix(end + document_end.size());
    }
  }
  bool may_cut_at_newlines() const override { return true; }
  std::string_view token_bytes(int32_t id) const override {
    static const auto bytes = [] {
      std::array<char, 256> table;
      std::iota(table.begin(), table.end(), 0);
      return table;
    }();
    if (id < 0 || id > byte_eos)
      throw Error(Exit::data, text("token ", id, " is not in the byte vocabulary of 257"));
    return id == byte_eos ? document_end : std::string_view(&bytes[id], 1);
  }
  void save(const std::string& folder) const override { write_tokenizer_json(definition(), folder); }

 private:
  // The same tokenizer as a byte-level BPE without merges.
  static BpeDefinition definition() {
    BpeDefinition d;
    for (int b = 0; b < 256; ++b) d.tokens.push_back(std::string(1, static_cast<char>(b)));
    d.tokens.push_back(std::string(document_end));
    d.added.push_back({.id = byte_eos, .content = std::string(document_end)});
    d.eos_id = byte_eos;
    return d;
  }
};

}  // namespace

std::vector<int32_t> Tokenizer::encode(std::string_view text, SpecialText special) const {
  std::vector<int32_t> ids;
  encode_to(text, special, ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (int32_t id : ids) text += token_bytes(id);
  if (drops_first_space() && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

std::string StreamDecoder::push(int32_t id) {
  pending_ += tokenizer_->token_bytes(id);
  if (at_start_ && !pending_.empty()) {
    if (tokenizer_->drops_first_space() && pending_[0] == ' ') pending_.erase(0, 1);
    at_start_ = false;
  }
  const size_t complete = pending_.size() - unfinished_utf8(pending_);
  std::string ready = pending_.substr(0, complete);
  pending_.erase(0, complete);
  return ready;
}

std::string StreamDecoder::finish() {
  at_start_ = true;
  return std::exchange(pending_, {});
}

std::shared_ptr<const Tokenizer> load_tokenizer(const std::string& spec) {
  if (spec == "byte") return std::make_shared<ByteTokenizer>();
  return make_bpe_tokenizer(read_tokenizer_json(spec));
}

}  // namespace weft
