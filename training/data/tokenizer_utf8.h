#pragma once
// UTF-8 without assumptions: what of a byte string is valid (no overlong forms, no surrogates, at most
// U+10FFFF).

#include <cstddef>
#include <string_view>

namespace weft {

// Bytes in the valid character that starts text; 0 when none does.
size_t utf8_length(std::string_view text);
// The position of the first byte that is not part of a valid character, or text.size().
size_t valid_prefix(std::string_view text);
// Bytes at the end of text that start a character and miss the rest of it (0..3).
size_t unfinished_utf8(std::string_view text);

// The code point of the valid character at p; length receives its bytes.
inline char32_t code_point(const char* p, size_t& length) {
  const auto byte = [p](int i) { return static_cast<unsigned char>(p[i]); };
  const auto tail = [&](int i) { return static_cast<char32_t>(byte(i) & 0x3f); };
  if (byte(0) < 0x80) return length = 1, byte(0);
  if (byte(0) < 0xe0) return length = 2, (byte(0) & 0x1f) << 6 | tail(1);
  if (byte(0) < 0xf0) return length = 3, (byte(0) & 0x0f) << 12 | tail(1) << 6 | tail(2);
  return length = 4, (byte(0) & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3);
}

// Hands over the maximal runs of valid and of invalid bytes in order, as sink(run, is_valid).
template <class F>
void split_by_validity(std::string_view text, F&& sink) {
  while (!text.empty()) {
    const size_t valid = valid_prefix(text);
    if (valid > 0) sink(text.substr(0, valid), true);
    text.remove_prefix(valid);
    size_t invalid = 0;
    while (invalid < text.size() && utf8_length(text.substr(invalid)) == 0) ++invalid;
    if (invalid > 0) sink(text.substr(0, invalid), false);
    text.remove_prefix(invalid);
  }
}

}  // namespace weft
