#include "training/log/printable.h"

#include <nlohmann/json.hpp>

namespace weft {
namespace {

std::string valid_utf8(std::string_view text) {
  using nlohmann::json;
  return json::parse(json(text).dump(-1, ' ', false, json::error_handler_t::replace)).get<std::string>();
}

// Bytes of the control character that starts text, 0 if none does: C0, DEL, C1 (which some terminals obey),
// U+2028 and U+2029.
size_t control_bytes(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0; };
  if (byte(0) < 0x20 || byte(0) == 0x7f) return 1;
  if (byte(0) == 0xc2 && byte(1) >= 0x80 && byte(1) < 0xa0) return 2;
  if (byte(0) == 0xe2 && byte(1) == 0x80 && (byte(2) == 0xa8 || byte(2) == 0xa9)) return 3;
  return 0;
}

}  // namespace

std::string printable(std::string_view text, bool keep_lines) {
  const std::string valid = valid_utf8(text);
  std::string out;
  for (std::string_view rest = valid; !rest.empty();) {
    const size_t control = control_bytes(rest);
    const bool keep = control == 0 || (keep_lines && (rest[0] == '\n' || rest[0] == '\t'));
    out += keep ? rest[0] : ' ';
    rest.remove_prefix(std::max<size_t>(control, 1));
  }
  return out;
}

}  // namespace weft
