#include "training/data/tokenizer_utf8.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace weft {
namespace {

// The length that a first byte announces; 0 for a byte that starts no character.
size_t announced_length(unsigned char first) {
  if (first < 0x80) return 1;
  if (first < 0xc2) return 0;
  if (first < 0xe0) return 2;
  if (first < 0xf0) return 3;
  return first < 0xf5 ? 4 : 0;
}

// Whether `second` may follow `first`: rules out overlong forms, surrogates, and what lies beyond U+10FFFF.
bool may_follow(unsigned char first, unsigned char second) {
  if ((second & 0xc0) != 0x80) return false;
  switch (first) {
    case 0xe0: return second >= 0xa0;
    case 0xed: return second < 0xa0;
    case 0xf0: return second >= 0x90;
    case 0xf4: return second < 0x90;
    default: return true;
  }
}

// How many of the first bytes of text belong to one character that starts there, finished or not.
size_t character_bytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const size_t length = std::min(announced_length(byte(0)), text.size());
  if (length < 2) return length;
  if (!may_follow(byte(0), byte(1))) return 1;
  size_t n = 2;
  while (n < length && (byte(n) & 0xc0) == 0x80) ++n;
  return n;
}

}  // namespace

size_t utf8_length(std::string_view text) {
  if (text.empty()) return 0;
  const size_t announced = announced_length(static_cast<unsigned char>(text[0]));
  return character_bytes(text) == announced ? announced : 0;
}

size_t valid_prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    uint64_t eight;
    while (at + 8 <= text.size()) {  // plain ASCII, eight bytes at a time
      std::memcpy(&eight, text.data() + at, 8);
      if (eight & 0x8080808080808080u) break;
      at += 8;
    }
    if (at == text.size()) break;
    const size_t length = utf8_length(text.substr(at));
    if (length == 0) break;
    at += length;
  }
  return at;
}

size_t unfinished_utf8(std::string_view text) {
  for (size_t n = 1; n <= std::min<size_t>(3, text.size()); ++n) {
    const std::string_view tail = text.substr(text.size() - n);
    const size_t announced = announced_length(static_cast<unsigned char>(tail[0]));
    if (announced > n && character_bytes(tail) == n) return n;
  }
  return 0;
}

}  // namespace weft
