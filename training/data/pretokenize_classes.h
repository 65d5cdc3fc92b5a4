#pragma once
// The four character classes that the tokenizers' splitting patterns are made of: \p{L}, \p{N}, \s, and the
// rest.

#include <cstdint>
#include <span>
#include <string_view>

namespace weft {

enum class CharClass : uint8_t { other = 0, letter = 1, number = 2, space = 3 };

// One class for each code point below 0x110000, by Unicode 16.0. Built at the first call.
const CharClass* char_classes();

// The code points to which Unicode 16.0 gives another general category than 14.0 did, by runs. They are what
// a PCRE2 of these versions, or of one between them, may get wrong.
struct NewerRun {
  uint32_t first, last;
  std::string_view category;
};
std::span<const NewerRun> newer_runs();
// Whether a valid text has one of them.
bool has_newer(std::string_view text);

}  // namespace weft
