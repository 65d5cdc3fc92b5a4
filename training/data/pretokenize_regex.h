#pragma once
// A pattern of tokenizer.json, written for Oniguruma (Ruby's syntax), as a PCRE2 pattern of the same meaning.

#include <string>

namespace weft {

// Errors: Exit::data, naming the construct, where the two engines differ and no translation is known.
std::string ruby_to_pcre2(const std::string& pattern);

}  // namespace weft
