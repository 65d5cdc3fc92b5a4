#pragma once
// A pattern of tokenizer.json, written for Oniguruma (Ruby's syntax), as a PCRE2 pattern of the same meaning.

#include <string>

namespace weft {

// Errors: Exit::data, naming the construct, where the two engines differ and no translation is known.
// With newer, the categories of newer_runs (pretokenize_classes.h) are those of Unicode 16.0 and not those of
// the machine's PCRE2. That pattern is up to four times as slow. Scripts are always those of PCRE2.
std::string ruby_to_pcre2(const std::string& pattern, bool newer);

}  // namespace weft
