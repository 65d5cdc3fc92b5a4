#pragma once
// The four character classes that the tokenizers' splitting patterns are made of: \p{L}, \p{N}, \s, and the
// rest.

#include <cstdint>

namespace weft {

enum class CharClass : uint8_t { other = 0, letter = 1, number = 2, space = 3 };

// One class for each code point below 0x110000, by Unicode 16.0. Built at the first call.
const CharClass* char_classes();

}  // namespace weft
