#pragma once
// Text to token ids and back. Text is bytes: valid UTF-8 is treated as such, and bytes that are not survive a
// round trip unchanged.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

// How a special token that stands in the text as characters, such as <|endoftext|>, is read.
enum class SpecialText {
  parse,  // as its id, the way Hugging Face `tokenizers` does
  plain,  // as ordinary characters: for training documents and for text that is not to be trusted
};

// Immutable after construction; every const member is safe from several threads at a time.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  virtual std::string name() const = 0;    // "byte", "bpe-50257"
  virtual int32_t vocab_size() const = 0;  // ids lie in [0, vocab_size); the largest id plus one
  virtual int32_t eos_id() const = 0;      // the document end token
  // What the tokenizer puts before a text, if anything.
  virtual std::optional<int32_t> bos_id() const { return {}; }

  // XXH3-128, 32 hex digits, over everything that maps text to ids and back (and not the choice of eos and
  // bos). Equal hashes mean equal ids; the same vocabulary in another spelling of tokenizer.json has the same
  // hash.
  virtual std::string hash() const = 0;

  // Appends the ids of text to out, without bos or eos.
  virtual void encode_to(std::string_view text, SpecialText special, std::vector<int32_t>& out) const = 0;
  std::vector<int32_t> encode(std::string_view text, SpecialText special = SpecialText::parse) const;

  // True when a text may be cut after a newline that stands alone between two ASCII letters or digits,
  // because encoding both parts gives the ids of the whole. False where that is not certain.
  virtual bool may_cut_at_newlines() const = 0;

  // The bytes that one id stands for. Errors: Exit::data when there is no such id.
  virtual std::string_view token_bytes(int32_t id) const = 0;
  // True when decoding drops one space at the start of a text, which encoding had put there (Llama 2).
  virtual bool drops_first_space() const { return false; }
  std::string decode(std::span<const int32_t> ids) const;

  // Writes folder/tokenizer.json and folder/tokenizer_config.json (eos, bos) for Hugging Face `transformers`;
  // load_tokenizer reads them back to a tokenizer with the same hash. Errors: Exit::cannot_create, Exit::io.
  virtual void save(const std::string& folder) const = 0;
};

// spec: "byte" (ids 0..255 are bytes, 256 ends a document), a tokenizer.json, or a folder that holds one.
// Errors: Exit::data for a file that is missing, broken, or uses a part that is not supported, naming the
// field.
std::shared_ptr<const Tokenizer> load_tokenizer(const std::string& spec);

// Decodes one id at a time without ever splitting a UTF-8 character.
class StreamDecoder {
 public:
  // continues: a text that others began, so its first space is a space (Tokenizer::drops_first_space).
  explicit StreamDecoder(const Tokenizer& tokenizer, bool continues = false)
      : tokenizer_(&tokenizer), at_start_(!continues) {}
  // The text that became complete with this id; the first bytes of an unfinished character are held back.
  std::string push(int32_t id);
  // What is still held back; the next push starts a new text.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;
  bool at_start_;
};

}  // namespace weft
