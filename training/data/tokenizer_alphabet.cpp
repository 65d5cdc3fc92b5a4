#include <array>
#include <cstdint>

#include "training/data/tokenizer_json.h"
#include "training/data/tokenizer_utf8.h"

namespace weft {
namespace {

bool stands_for_itself(int b) { return (b > 0x20 && b < 0x7f) || (b > 0xa0 && b != 0xad); }

struct Alphabet {
  std::array<int, 256> character_of;
  std::array<int, 256 + 68> byte_of;  // by character; -1 for none

  Alphabet() {
    byte_of.fill(-1);
    int next = 256;
    for (int b = 0; b < 256; ++b) {
      character_of[b] = stands_for_itself(b) ? b : next++;
      byte_of[character_of[b]] = b;
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet table;
  return table;
}

}  // namespace

std::string to_byte_alphabet(std::string_view bytes) {
  std::string out;
  for (unsigned char b : bytes) {
    const int c = alphabet().character_of[b];
    if (c >= 0x80) out += static_cast<char>(0xc0 | c >> 6);
    out += static_cast<char>(c < 0x80 ? c : 0x80 | (c & 0x3f));
  }
  return out;
}

std::optional<std::string> from_byte_alphabet(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    if (utf8_length(text) == 0) return {};
    size_t length;
    const char32_t c = code_point(text.data(), length);
    if (c >= alphabet().byte_of.size() || alphabet().byte_of[c] < 0) return {};
    out += static_cast<char>(alphabet().byte_of[c]);
    text.remove_prefix(length);
  }
  return out;
}

std::string bytes_in_alphabet_order() {
  std::string out;
  for (int b : alphabet().byte_of)
    if (b >= 0) out += static_cast<char>(b);
  return out;
}

}  // namespace weft
