#pragma once
// Hugging Face's tokenizer.json (BPE models) as a BpeDefinition, and back.

#include <optional>
#include <string>
#include <string_view>

#include "training/data/bpe.h"

namespace weft {

// path: a tokenizer.json or a folder that holds one. The end token is the eos_token of a
// tokenizer_config.json beside it, else the first of the usual names that the vocabulary has. Errors:
// Exit::data when the file is missing or broken, or has a part that is not supported: the message names it.
BpeDefinition read_tokenizer_json(const std::string& path);

// Writes folder/tokenizer.json and folder/tokenizer_config.json. Errors: Exit::cannot_create, Exit::io.
void write_tokenizer_json(const BpeDefinition& definition, const std::string& folder);

// The spelling of bytes in tokenizer.json, by Radford et al. 2019: printable characters of Latin-1 for
// themselves, the 68 other bytes as U+0100 and on ("Ġ" is a space).
std::string to_byte_alphabet(std::string_view bytes);
std::optional<std::string> from_byte_alphabet(
    std::string_view text);  // nothing: a character outside the alphabet

// The 256 bytes in the order of their spellings, which is the order of the ids in GPT-2's vocabulary.
std::string bytes_in_alphabet_order();

}  // namespace weft
