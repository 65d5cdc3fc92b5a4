#include "autograd/field_value.h"

#include <algorithm>

namespace weft {

namespace {

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Letters, digits, and signs that never mean anything to YAML inside a word.
bool is_word(const std::string& text) {
  if (text.empty() || !(is_letter(text[0]) || text[0] == '/' || text[0] == '_')) return false;
  return std::all_of(text.begin(), text.end(), [](char c) {
    return is_letter(c) || is_digit(c) || c == '/' || c == '_' || c == '-' || c == '.';
  });
}

// Words that some YAML reader takes for something other than a string.
bool is_reserved(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  for (const char* word : {"true", "false", "yes", "no", "on", "off", "null", "nan", "inf", "none", "y", "n"})
    if (text == word) return true;
  return false;
}

bool is_number(const std::string& text) {
  return std::any_of(text.begin(), text.end(), is_digit) &&
         text.find_first_not_of("0123456789.eE+-") == std::string::npos;
}

std::string quote(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (byte < 0x20 || byte == 0x7F) {
      const char* digits = "0123456789ABCDEF";
      out += {'\\', 'x', digits[byte / 16], digits[byte % 16]};
    } else {
      out += c;
    }
  }
  return out + "\"";
}

}  // namespace

std::string Place::text() const {
  if (!source) return {};
  if (line == 0) return *source;
  return *source + ":" + std::to_string(line) + ":" + std::to_string(column);
}

const FieldValue* FieldValue::find(const std::string& wanted) const {
  for (const FieldValue& item : items)
    if (kind == Kind::map && item.key == wanted) return &item;
  return nullptr;
}

FieldValue text_value(std::string text, bool quoted) {
  FieldValue value;
  value.kind = FieldValue::Kind::text;
  value.text = std::move(text);
  value.quoted = quoted;
  return value;
}

std::string to_text(const FieldValue& value) {
  using Kind = FieldValue::Kind;
  if (value.kind == Kind::none) return "null";
  if (value.kind == Kind::text) {
    const std::string& text = value.text;
    const bool bare = value.quoted ? is_word(text) && !is_reserved(text) : is_word(text) || is_number(text);
    return bare ? text : quote(text);
  }
  std::string out;
  for (const FieldValue& item : value.items) {
    if (!out.empty()) out += ", ";
    if (value.kind == Kind::map)
      out += (is_word(item.key) && !is_reserved(item.key) ? item.key : quote(item.key)) + ": ";
    out += to_text(item);
  }
  return value.kind == Kind::map ? "{" + out + "}" : "[" + out + "]";
}

std::string shown(const FieldValue& value) {
  return value.kind == FieldValue::Kind::map ? "a section" : shown(to_text(value));
}

std::string shown(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  if (text.size() <= 60) return text;
  size_t end = 57;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;  // whole UTF-8 characters
  return text.substr(0, end) + "...";
}

}  // namespace weft
