#pragma once
// Byte-pair encoding: Sennrich, Haddow, Birch 2016, "Neural Machine Translation of Rare Words with Subword
// Units"; on bytes: Radford et al. 2019 (GPT-2). A definition says everything that Hugging Face's
// tokenizer.json says and that matters here; it is read from there, from another file format, or trained.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "training/data/pretokenize.h"
#include "training/data/tokenizer.h"

namespace weft {

// The document end token of the tokenizers made here.
inline constexpr std::string_view document_end = "<|endoftext|>";

// A token that is looked for in the text before anything else.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = true;                  // SpecialText::plain leaves it alone
  bool normalized = false;              // looked for after normalisation, not before
  bool lstrip = false, rstrip = false;  // takes the white space before or after it along
  bool in_vocabulary = true;            // also what a text without added tokens can become
};

struct NormalizerStep {
  enum class Kind { nfc, nfd, nfkc, nfkd, prepend, replace };
  Kind kind;
  // replace: every `from` becomes `to`; prepend: `to` is put before a text that is not empty.
  std::string from, to;
};

// Where Metaspace (SentencePiece's habit) puts a "▁" before a text.
enum class Prepend { never, first, always };

struct BpeDefinition {
  // bytes: the text's bytes are the first symbols (GPT-2, Llama 3); characters: UTF-8 characters that are in
  // the vocabulary, and tokens <0x00>..<0xFF> for the bytes of all others (Llama 2).
  enum class Symbols { bytes, characters };
  Symbols symbols = Symbols::bytes;

  // By id: bytes, or UTF-8 with "▁" for a space; empty where there is no such id.
  std::vector<std::string> tokens;
  // Pairs of ids, best first; the two tokens joined are a token.
  std::vector<std::pair<int32_t, int32_t>> merges;
  std::vector<AddedToken> added;
  std::vector<NormalizerStep> normalizer;  // in the order of application
  std::vector<SplitRule> splits;           // each cuts the pieces of the one before it
  std::optional<Prepend> metaspace;        // spaces become "▁"
  bool add_prefix_space = false;           // a text that does not start with a space gets one
  bool ignore_merges = false;              // a piece that is a token is that token, whatever the merges say
  bool drop_first_space = false;           // decoding undoes the space that encoding put first
  int32_t eos_id = 0;
  std::optional<int32_t> bos_id;
};

// Errors: Exit::data, saying what is wrong, when the definition does not hold together or could lose bytes.
std::shared_ptr<const Tokenizer> make_bpe_tokenizer(BpeDefinition definition);

// What Tokenizer::hash() returns.
std::string definition_hash(const BpeDefinition& definition);

}  // namespace weft
